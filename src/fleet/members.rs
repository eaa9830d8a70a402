//! Devices in groups: which devices match a filter, and what they have in common by their type, version or labels.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::bitmap::Bitmap;
use super::described::{Described, Notes, TextColumn};
use super::evaluate::Rows;
use super::queries::{QueryFailure, Run};
use super::FleetIndex;
use crate::actors::entry::DeviceEntry;
use crate::query::{Field, Filter};

/// Devices that match a filter, each in a group, in no particular order.
#[derive(Clone, Default)]
pub struct Members {
    pub devices: Vec<Arc<DeviceEntry>>,
    /// The group of each of `devices`, as its place in `groups`.
    pub group_of: Vec<u32>,
    /// The values of the fields that a group has in common, in the order in which the fields were named; empty for what
    /// its devices do not have.
    pub groups: Vec<Vec<Box<str>>>,
}

impl FleetIndex {
    /// The devices that match `filter`, grouped by `fields`: texts and labels; other fields count as absent. Blocks for
    /// the time that it takes, as [`Self::page`].
    pub(super) fn members(&self, filter: &Filter, fields: &[Field], run: &Run<'_>) -> Result<Members, QueryFailure> {
        let mut grouping = Grouping::default();
        self.scan(filter, run, |rows, selected| grouping.take(rows, selected, fields))?;
        Ok(grouping.members)
    }

    /// Whether a device has a label of this key.
    pub(super) fn has_label(&self, key: &str, run: &Run<'_>) -> Result<bool, QueryFailure> {
        let mut is_there = false;
        self.scan(&Filter::matches_all(), run, |rows, all| {
            // The rest of the fleet is gone through, and not looked at.
            if is_there {
                return;
            }
            if let TextColumn::Attributes(key) = rows.described.column_of_note(Notes::Labels, key) {
                is_there = all.iter().any(|row| rows.described.values(row, key).next().is_some());
            }
        })?;
        Ok(is_there)
    }
}

#[derive(Default)]
struct Grouping {
    members: Members,
    by_key: HashMap<String, u32>,
    /// Used again for each device.
    key: String,
}

impl Grouping {
    fn take(&mut self, rows: Rows<'_>, selected: &Bitmap, fields: &[Field]) {
        let described = rows.described;
        let columns: Vec<TextColumn> = fields.iter().map(|field| column(described, field)).collect();
        for row in selected.iter() {
            let Some(entry) = described.entry(row) else { continue };
            let group = self.group(described, row, &columns);
            self.members.devices.push(Arc::clone(entry));
            self.members.group_of.push(group);
        }
    }

    fn group(&mut self, described: &Described, row: usize, columns: &[TextColumn]) -> u32 {
        self.key.clear();
        for column in columns {
            let text = described.first_text(row, column).unwrap_or_default();
            // With its length before it, no two lists of texts have one key. Writing to a String cannot fail.
            let _ = write!(self.key, "{}:{text}", text.len());
        }
        if let Some(group) = self.by_key.get(&self.key) {
            return *group;
        }
        let text = |column| described.first_text(row, column).unwrap_or_default().into();
        // No more groups than devices.
        let group = self.members.groups.len() as u32;
        self.members.groups.push(columns.iter().map(text).collect());
        self.by_key.insert(self.key.clone(), group);
        group
    }
}

fn column(described: &Described, field: &Field) -> TextColumn {
    match field {
        Field::Text(field) => described.column_of(*field),
        Field::Label(key) => described.column_of_note(Notes::Labels, key),
        Field::Metadata(key) => described.column_of_note(Notes::Metadata, key),
        Field::Status | Field::LastSeen | Field::RegisteredAt | Field::Number(_) | Field::Metric(_) => {
            TextColumn::Nowhere
        }
    }
}
