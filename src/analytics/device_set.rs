//! Which devices a question is about, and how ClickHouse is told.
//!
//! Filters and labels are evaluated now, by the fleet index. ClickHouse gets the ids: one as a parameter, more as rows of
//! `device_sets`, which cost neither a long text nor a bound on their number. Nothing of a filter or a label reaches it.
use std::sync::Arc;

use bytes::Bytes;
use clickhouse::query::Query;
use uuid::Uuid;

use super::pool::{AnalystPool, PoolError};
use crate::actors::entry::DeviceEntry;
use crate::fleet::{FleetQueries, Members, QueryFailure};
use crate::ids::DeviceId;
use crate::query::{Field, Filter, Test, TextField};
use crate::telemetry::row::binary::{put_string, put_u32, put_uuid};

/// Rows of one insert: some 4 MB with ids of a usual length, so that a million devices are ten parts and little memory.
const ROWS_AN_INSERT: usize = 100_000;

/// Sets of this size and less also narrow what is read by the primary key, beside the join that tells groups. Beyond, the
/// set would take as much memory again as the join does.
const MAX_NARROWING: usize = 100_000;

/// Devices as a question names them.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// By id, whether it is registered or not.
    pub device_id: Option<DeviceId>,
    /// Texts and labels, with the value that each must have.
    pub tests: Vec<(Field, String)>,
    /// `device_filter`.
    pub filter: Filter,
    /// Texts and labels that tell the groups; empty for one group.
    pub group_by: Vec<Field>,
}

impl Choice {
    /// Those that match a filter, as one group.
    pub fn matching(filter: Filter) -> Self {
        Self { device_id: None, tests: vec![], filter, group_by: vec![] }
    }

    /// Whether the fleet index has to be asked.
    fn needs_index(&self) -> bool {
        !self.tests.is_empty() || self.filter.root().is_some() || !self.group_by.is_empty()
    }
}

/// Devices that were chosen.
#[derive(Clone)]
pub enum DeviceSet {
    /// All, also those that are registered no more.
    All,
    /// One, registered or not.
    One(DeviceId),
    /// Those that are registered now and match.
    Members(Members),
}

impl DeviceSet {
    /// Finds the devices of a choice.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn resolve(queries: &FleetQueries, choice: Choice) -> Result<Self, QueryFailure> {
        if !choice.needs_index() {
            return Ok(choice.device_id.map_or(Self::All, Self::One));
        }
        let id = choice.device_id.as_ref().map(|id| Test::is(Field::Text(TextField::Id), id.as_str()));
        let tests = choice.tests.into_iter().map(|(field, text)| Test::is(field, &text));
        let filter = choice.filter.and(id.into_iter().chain(tests));
        Ok(Self::Members(queries.members(filter, choice.group_by).await?))
    }

    /// These devices, as one group.
    pub fn of(devices: Vec<Arc<DeviceEntry>>) -> Self {
        let group_of = vec![0; devices.len()];
        Self::Members(Members { devices, group_of, groups: vec![vec![]] })
    }

    /// Tells ClickHouse the devices, so that a statement can name them.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub async fn stage(&self, pool: &AnalystPool) -> Result<StagedSet, PoolError> {
        let members = match self {
            Self::All => return Ok(StagedSet(Staged::All)),
            Self::One(id) => return Ok(StagedSet(Staged::One(id.to_string()))),
            Self::Members(members) => members,
        };
        match &members.devices[..] {
            [] => return Ok(StagedSet(Staged::Nobody)),
            // Alone it is in the first group, and the only one.
            [device] => return Ok(StagedSet(Staged::One(device.id.to_string()))),
            _ => {}
        }
        let set_id = Uuid::new_v4();
        let _turn = pool.turn().await?;
        // By chunks, not by one iterator with a closure: that would be held over the wait.
        let chunks = members.devices.chunks(ROWS_AN_INSERT).zip(members.group_of.chunks(ROWS_AN_INSERT));
        for (devices, groups) in chunks {
            let rows = encode(set_id, devices.iter().map(|device| device.id.as_str()).zip(groups.iter().copied()));
            pool.clickhouse().insert(INSERT, rows).await.map_err(PoolError::of)?;
        }
        Ok(StagedSet(Staged::Many { set_id: set_id.to_string(), len: members.devices.len() }))
    }
}

const INSERT: &str = "INSERT INTO device_sets (set_id, device_id, group_id) FORMAT RowBinary";

/// In RowBinary.
fn encode<'a>(set_id: Uuid, rows: impl Iterator<Item = (&'a str, u32)>) -> Bytes {
    let mut out = Vec::new();
    for (id, group) in rows {
        put_uuid(&mut out, set_id);
        put_string(&mut out, id);
        put_u32(&mut out, group);
    }
    out.into()
}

/// Devices as a statement names them. Rows of a set stay for two hours.
#[derive(Clone, Debug)]
pub struct StagedSet(Staged);

#[derive(Clone, Debug)]
enum Staged {
    All,
    Nobody,
    One(String),
    Many { set_id: String, len: usize },
}

impl StagedSet {
    /// Every device.
    pub fn all() -> Self {
        Self(Staged::All)
    }

    /// Whether there is nobody to ask about.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Staged::Nobody)
    }

    /// Whether it is every device, so that no condition is needed.
    pub fn is_all(&self) -> bool {
        matches!(self.0, Staged::All)
    }

    /// What holds of a row's `device_id` when it is in the set; bind its parameters with [`Self::bind`].
    ///
    /// GLOBAL: on a cluster the set is read once and sent along, else every shard would ask every other.
    pub fn condition(&self) -> &'static str {
        match self.0 {
            Staged::All => "1",
            Staged::Nobody => "0",
            Staged::One(_) => "device_id = {device:String}",
            Staged::Many { .. } => {
                "device_id GLOBAL IN (SELECT device_id FROM device_sets WHERE set_id = {device_set:UUID})"
            }
        }
    }

    /// A source that has only the set's rows of `source` (a table or a subquery in parentheses), each with the number of
    /// its group as `group_id`.
    ///
    /// ALL: an ANY INNER JOIN would keep one row of each device.
    pub fn grouped(&self, source: &str) -> String {
        match self.0 {
            Staged::All | Staged::One(_) | Staged::Nobody => {
                format!("(SELECT *, toUInt32(0) AS group_id FROM {source} WHERE {})", self.condition())
            }
            Staged::Many { len, .. } => {
                let narrowed = if len <= MAX_NARROWING { self.condition() } else { "1" };
                format!(
                    "(SELECT * FROM {source} AS rows GLOBAL ALL INNER JOIN \
                     (SELECT device_id, group_id FROM device_sets WHERE set_id = {{device_set:UUID}}) AS members \
                     USING (device_id) WHERE {narrowed})"
                )
            }
        }
    }

    /// What [`Self::condition`] and [`Self::grouped`] name: parameter and value, if there is one.
    pub fn parameter(&self) -> Option<(&'static str, &str)> {
        match &self.0 {
            Staged::All | Staged::Nobody => None,
            Staged::One(id) => Some(("device", id)),
            Staged::Many { set_id, .. } => Some(("device_set", set_id)),
        }
    }

    /// Binds what [`Self::condition`] and [`Self::grouped`] name.
    pub fn bind(&self, query: Query) -> Query {
        match self.parameter() {
            Some((name, value)) => query.param(name, value),
            None => query,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_clickhouse_reads_it() {
        let id = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let long = "x".repeat(128);
        let rows = encode(id, [("ab", 7), (long.as_str(), 256)].into_iter());
        assert_eq!(rows[..8], [0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00]);
        assert_eq!(rows[16..23], [2, b'a', b'b', 7, 0, 0, 0]);
        assert_eq!(rows[23 + 16..23 + 18], [0x80, 1], "128 takes two bytes");
        assert_eq!(rows.len(), 23 + 16 + 2 + 128 + 4);
    }

    #[test]
    fn a_condition_is_the_same_whatever_the_devices() {
        let one = |id: &str| StagedSet(Staged::One(id.to_owned()));
        assert_eq!(one("a").condition(), one("x' OR 1=1 --").condition());
        let many = |set_id: &str, len| StagedSet(Staged::Many { set_id: set_id.to_owned(), len });
        assert_eq!(many("a", 5).grouped("t"), many("b", 6).grouped("t"));
        assert!(StagedSet(Staged::Nobody).condition() == "0" && StagedSet::all().condition() == "1");
    }
}
