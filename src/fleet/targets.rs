//! The fleet as the planner of deployments sees it: a row of numbers for each device that is meant.
use std::collections::HashMap;
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;

use super::bitmap::{Bitmap, ROWS};
use super::chunk::Chunk;
use super::described::{Described, Notes, TextColumn};
use super::evaluate::{Plan, Rows, Scratch};
use super::queries::{QueryFailure, Run};
use super::texts::Symbol;
use super::FleetIndex;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::query::{Filter, QueryError, TextField};
use crate::rollout::{combine, stable_hash, Policy, Target, Targets};

/// Which devices, and what to find out of each.
pub struct SurveyRequest {
    /// Devices that match; `None` means none.
    pub filter: Option<Filter>,
    /// Devices beside those that match. One that is forgotten is left out.
    pub devices: Vec<Arc<DeviceEntry>>,
    /// Labels by which samples are stratified, beside type and version.
    pub stratify_labels: Vec<String>,
    /// Those of the policy's waves, in order: at most [`crate::rollout::MAX_WAVES`], what is more is not looked at. An
    /// empty one matches every device.
    pub wave_filters: Vec<Filter>,
    /// Whether another deployment has a device.
    pub is_taken: Box<dyn Fn(&DeviceEntry) -> bool + Send>,
}

impl SurveyRequest {
    /// What the plan of `policy` needs to know. Times such as `-1h` in the filters of its waves count from `now`.
    ///
    /// # Errors
    /// For a filter of a wave that does not parse; a policy that was checked has none.
    pub fn of(
        policy: &Policy,
        filter: Option<Filter>,
        devices: Vec<Arc<DeviceEntry>>,
        now: UnixMillis,
        is_taken: impl Fn(&DeviceEntry) -> bool + Send + 'static,
    ) -> Result<Self, QueryError> {
        let waves = policy.waves.iter().map(|wave| Filter::parse(&wave.device_filter, now));
        Ok(Self {
            filter,
            devices,
            stratify_labels: policy.stratify_labels.clone(),
            wave_filters: waves.collect::<Result<_, _>>()?,
            is_taken: Box::new(is_taken),
        })
    }
}

/// What was found: each device once, in no particular order. Large: it is best dropped where it was made, in `then` of
/// [`super::FleetQueries::survey`].
pub struct Survey {
    /// By the numbers of the rows.
    pub devices: Vec<Arc<DeviceEntry>>,
    rows: Vec<Target>,
    texts: Vec<Arc<str>>,
}

impl Targets for Survey {
    fn rows(&self) -> &[Target] {
        &self.rows
    }

    fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }

    fn id(&self, target: usize) -> &str {
        self.devices[target].id.as_str()
    }
}

impl Survey {
    /// As [`Targets::text`], to be kept.
    pub fn shared_text(&self, number: u32) -> Arc<str> {
        Arc::clone(&self.texts[number as usize])
    }
}

/// What decides which artifact a device gets, and when; empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceKind {
    pub device_type: String,
    pub arch: String,
    /// That it reported, else the registered one.
    pub version: String,
    pub time_zone: String,
}

impl FleetIndex {
    /// Blocks for the time that it takes, as [`Self::page`].
    pub(super) fn survey(&self, request: &SurveyRequest, run: &Run<'_>) -> Result<Survey, QueryFailure> {
        let chunks: Vec<Arc<Chunk>> = self.0.chunks.read().clone();
        let mut surveyor = Surveyor::new(request);
        for (looked_at, chunk) in chunks.iter().enumerate() {
            run.check(looked_at, chunks.len())?;
            let described = chunk.described.read();
            let rows = Rows { described: &described, hot: &chunk.hot, moment: &run.moment };
            surveyor.look_at(rows, Arc::as_ptr(chunk));
        }
        Ok(surveyor.found.finish())
    }

    /// What a device is now; `None` for one that has no row.
    pub fn kind(&self, entry: &DeviceEntry) -> Option<DeviceKind> {
        let row = entry.row()?;
        let described = row.chunk.described.read();
        let text = |field| {
            let text = described.first_text(row.slot(), &described.column_of(field));
            text.unwrap_or_default().to_owned()
        };
        row.is_of(&described, entry).then(|| DeviceKind {
            device_type: text(TextField::Type),
            arch: text(TextField::Arch),
            version: text(TextField::Version),
            time_zone: text(TextField::TimeZone),
        })
    }
}

/// A survey on its way through the chunks.
struct Surveyor<'a> {
    request: &'a SurveyRequest,
    filter: Option<Plan>,
    waves: Vec<Plan>,
    /// Devices that were named, by their chunk.
    named: HashMap<*const Chunk, Vec<&'a Arc<DeviceEntry>>>,
    scratch: Scratch,
    found: Found,
}

#[derive(Default)]
struct Found {
    devices: Vec<Arc<DeviceEntry>>,
    rows: Vec<Target>,
    texts: Dictionary,
}

impl Found {
    fn finish(self) -> Survey {
        Survey { devices: self.devices, rows: self.rows, texts: self.texts.texts }
    }
}

impl<'a> Surveyor<'a> {
    fn new(request: &'a SurveyRequest) -> Self {
        let mut named = HashMap::<_, Vec<_>>::new();
        for device in &request.devices {
            if let Some(row) = device.row() {
                named.entry(Arc::as_ptr(&row.chunk)).or_default().push(device);
            }
        }
        let waves = request.wave_filters.iter().take(u64::BITS as usize).map(Plan::of).collect();
        Self {
            request,
            filter: request.filter.as_ref().map(Plan::of),
            waves,
            named,
            scratch: Scratch::default(),
            found: Found::default(),
        }
    }

    /// `chunk` is the one whose rows these are.
    fn look_at(&mut self, rows: Rows<'_>, chunk: *const Chunk) {
        let described = rows.described;
        let mut selected =
            self.filter.as_ref().map_or_else(Bitmap::default, |plan| plan.select(rows, &mut self.scratch));
        for device in self.named.get(&chunk).into_iter().flatten() {
            if let Some(row) = device.row().filter(|row| row.is_of(described, device)) {
                selected.insert(row.slot());
            }
        }
        if selected.is_empty() {
            return;
        }
        let mut wave_matches = [0_u64; ROWS];
        for (wave, plan) in self.waves.iter().enumerate() {
            let matching = plan.select_among(rows, &mut self.scratch, &selected);
            matching.iter().for_each(|row| wave_matches[row] |= 1 << wave);
        }
        let labels = self.request.stratify_labels.iter();
        let labels: Vec<_> = labels.map(|label| described.column_of_note(Notes::Labels, label)).collect();
        let columns = [TextField::Type, TextField::Arch, TextField::Version].map(|field| described.column_of(field));
        self.found.texts.enter_chunk(described);
        for row in selected.iter() {
            let Some(entry) = described.entry(row) else { continue };
            let texts = &mut self.found.texts;
            let [device_type, arch, version] =
                [0, 1, 2].map(|at| texts.number(described, symbol(described, row, &columns[at])));
            let mut stratum = combine(texts.hash(device_type), texts.hash(version));
            for label in &labels {
                // A device without the label is not one with an empty one.
                let value = described.first_text(row, label).map_or(0, |text| stable_hash(text) | 1);
                stratum = combine(stratum, value);
            }
            self.found.rows.push(Target {
                id_hash: stable_hash(entry.id.as_str()),
                stratum,
                wave_matches: wave_matches[row],
                device_type,
                arch,
                version,
                is_online: matches!(rows.hot.state(row, rows.moment), State::Online | State::Late),
                is_taken: (self.request.is_taken)(entry),
            });
            self.found.devices.push(Arc::clone(entry));
        }
    }
}

fn symbol(described: &Described, row: usize, column: &TextColumn) -> Symbol {
    match column {
        TextColumn::Symbols(column) => described.symbol(row, *column),
        TextColumn::Id | TextColumn::Attributes(_) | TextColumn::Nowhere => Symbol::NONE,
    }
}

/// Texts of all chunks, each with one number. A chunk's own numbers are looked up once for each chunk.
struct Dictionary {
    /// The first is the empty text, that of devices which have none.
    texts: Vec<Arc<str>>,
    hashes: Vec<u64>,
    by_text: HashMap<Arc<str>, u32>,
    /// By the symbols of the chunk that is looked at; [`NOT_ASKED`] before the first use.
    of_symbols: Vec<u32>,
}

const NOT_ASKED: u32 = u32::MAX;

impl Default for Dictionary {
    fn default() -> Self {
        let mut new = Self { texts: vec![], hashes: vec![], by_text: HashMap::new(), of_symbols: vec![] };
        new.intern("");
        new
    }
}

impl Dictionary {
    fn enter_chunk(&mut self, described: &Described) {
        self.of_symbols.clear();
        self.of_symbols.resize(described.texts().end(), NOT_ASKED);
    }

    fn number(&mut self, described: &Described, symbol: Symbol) -> u32 {
        let Some(text) = described.texts().get(symbol) else { return 0 };
        let known = self.of_symbols[symbol.index()];
        if known != NOT_ASKED {
            return known;
        }
        let number = self.intern(text);
        self.of_symbols[symbol.index()] = number;
        number
    }

    fn intern(&mut self, text: &str) -> u32 {
        if let Some(number) = self.by_text.get(text) {
            return *number;
        }
        // No more texts than three for each device.
        let number = self.texts.len() as u32;
        let text: Arc<str> = Arc::from(text);
        self.hashes.push(stable_hash(&text));
        self.texts.push(Arc::clone(&text));
        self.by_text.insert(text, number);
        number
    }

    fn hash(&self, number: u32) -> u64 {
        self.hashes[number as usize]
    }
}
