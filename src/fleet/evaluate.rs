//! Evaluates a filter on the rows of one chunk, column by column.
//!
//! The result is a set of rows. Each part of the filter looks only at the rows that can still change the result, and
//! parts that cost little go first. What one test means of one value is [`Condition`]'s to say, as in the evaluation
//! of a single device.
use super::bitmap::Bitmap;
use super::chunk::{none_if_zero, Hot};
use super::described::{id_prefix, Described, Notes, TextColumn};
use super::stats;
use super::texts::Symbol;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::presence::Moment;
use crate::query::{Condition, Expr, Field, Filter, NumberField, Shape, Test, TextField};

/// A chunk while a query holds it.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub described: &'a Described,
    pub hot: &'a Hot,
    pub moment: &'a Moment,
}

/// A filter in the order in which it is evaluated.
pub struct Plan {
    root: Option<Node>,
    now: UnixMillis,
}

enum Node {
    Not(Box<Node>),
    /// The cheapest first.
    And(Vec<Node>),
    Or(Vec<Node>),
    Test(Test),
    /// The id is one of these; sorted.
    IdOneOf(Vec<(u128, Box<str>)>),
}

impl Plan {
    pub fn of(filter: &Filter) -> Self {
        Self { root: filter.root().map(node), now: filter.now() }
    }

    /// The rows of the chunk that match.
    pub fn select(&self, rows: Rows<'_>, scratch: &mut Scratch) -> Bitmap {
        self.select_among(rows, scratch, rows.described.occupied())
    }

    /// Those of `among`, which are rows that devices have, that match.
    pub fn select_among(&self, rows: Rows<'_>, scratch: &mut Scratch, among: &Bitmap) -> Bitmap {
        match &self.root {
            None => *among,
            Some(root) => Evaluation { rows, now: self.now, scratch }.select(root, among),
        }
    }
}

fn node(expr: &Expr) -> Node {
    let nodes = |terms: &[Expr]| {
        let mut nodes: Vec<Node> = terms.iter().map(node).collect();
        nodes.sort_by_key(Node::cost);
        nodes
    };
    match expr {
        Expr::Not(inner) => Node::Not(Box::new(node(inner))),
        Expr::And(terms) => Node::And(nodes(terms)),
        Expr::Or(terms) => Node::Or(nodes(terms)),
        Expr::Test(test) => ids_of(test).map_or_else(|| Node::Test(test.clone()), Node::IdOneOf),
    }
}

/// The ids that a test asks for, when it asks for nothing else.
fn ids_of(test: &Test) -> Option<Vec<(u128, Box<str>)>> {
    let (Field::Text(TextField::Id), Condition::OneOf(patterns)) = (&test.field, &test.condition) else { return None };
    let exact = patterns
        .iter()
        .map(|pattern| (pattern.shape == Shape::Exact).then(|| (id_prefix(&pattern.text), pattern.text.clone())));
    let mut ids = exact.collect::<Option<Vec<_>>>()?;
    ids.sort_unstable();
    Some(ids)
}

impl Node {
    /// About the nanoseconds that a row costs.
    fn cost(&self) -> u32 {
        match self {
            Self::Not(inner) => inner.cost(),
            Self::And(terms) | Self::Or(terms) => terms.iter().map(Self::cost).sum(),
            Self::IdOneOf(_) => 5,
            Self::Test(test) => match &test.field {
                Field::Status | Field::LastSeen | Field::RegisteredAt => 2,
                Field::Number(field) if is_column(*field) => 2,
                Field::Text(TextField::Type | TextField::Version | TextField::Os | TextField::Arch) => 4,
                Field::Text(TextField::HardwareModel) => 4,
                Field::Text(TextField::Name) => 40,
                Field::Text(_) | Field::Metadata(_) | Field::Label(_) => 50,
                // Each follows pointers into memory that no query keeps warm, and takes the device's lock.
                Field::Number(_) => 200,
                Field::Metric(_) => 300,
            },
        }
    }
}

/// Whether the number has a column; the others are read from the last report.
fn is_column(field: NumberField) -> bool {
    match field {
        NumberField::CpuUsage
        | NumberField::MemoryUsage
        | NumberField::DiskUsage
        | NumberField::UptimeSeconds
        | NumberField::CpuCores
        | NumberField::MemoryMb
        | NumberField::DiskGb => true,
        NumberField::LoadAverage1m
        | NumberField::LoadAverage5m
        | NumberField::LoadAverage15m
        | NumberField::TemperatureCelsius
        | NumberField::BatteryPercent
        | NumberField::SignalDbm => false,
    }
}

/// Memory that a query uses again for each chunk.
#[derive(Default)]
pub struct Scratch {
    /// What a condition says of each text of the chunk.
    verdicts: Vec<Verdict>,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    NotAsked,
    Fails,
    Holds,
}

struct Evaluation<'a> {
    rows: Rows<'a>,
    now: UnixMillis,
    scratch: &'a mut Scratch,
}

impl Evaluation<'_> {
    /// Those of `among` for which `node` holds.
    fn select(&mut self, node: &Node, among: &Bitmap) -> Bitmap {
        if among.is_empty() {
            return *among;
        }
        match node {
            Node::Not(inner) => among.without(&self.select(inner, among)),
            Node::And(terms) => terms.iter().fold(*among, |left, term| self.select(term, &left)),
            Node::Or(terms) => {
                let mut found = Bitmap::default();
                for term in terms {
                    found = found.with(&self.select(term, &among.without(&found)));
                }
                found
            }
            Node::Test(test) => self.test(test, among),
            Node::IdOneOf(ids) => self.ids(ids, among),
        }
    }

    fn test(&mut self, test: &Test, among: &Bitmap) -> Bitmap {
        let (Rows { described, hot, moment }, condition, now) = (self.rows, &test.condition, self.now);
        match &test.field {
            Field::Status => among.filter(|row| condition.holds_for_state(hot.state(row, moment))),
            Field::LastSeen => {
                among.filter(|row| hot.last_seen(row).is_some_and(|at| condition.holds_for_time(at, now)))
            }
            Field::RegisteredAt => among.filter(|row| {
                let at = UnixMillis::from_millis_clamped(described.registered_at(row));
                condition.holds_for_time(at, now)
            }),
            Field::Number(field) => self.numbers(*field, condition, among),
            Field::Metric(name) => self.stats(condition, among, |bytes| stats::metric(bytes, name)),
            Field::Text(field) => self.texts(&described.column_of(*field), condition, among),
            Field::Metadata(key) => self.texts(&described.column_of_note(Notes::Metadata, key), condition, among),
            Field::Label(key) => self.texts(&described.column_of_note(Notes::Labels, key), condition, among),
        }
    }

    fn numbers(&self, field: NumberField, condition: &Condition, among: &Bitmap) -> Bitmap {
        let Rows { described, hot, .. } = self.rows;
        let column = |read: &dyn Fn(usize) -> f64| among.filter(|row| holds(condition, read(row)));
        match field {
            // The three that people ask for most, each with a loop of its own.
            NumberField::CpuUsage => among.filter(|row| holds(condition, hot.cpu_percent(row))),
            NumberField::MemoryUsage => among.filter(|row| holds(condition, hot.memory_percent(row))),
            NumberField::DiskUsage => among.filter(|row| holds(condition, hot.disk_percent(row))),
            NumberField::UptimeSeconds => column(&|row| hot.uptime_seconds(row)),
            NumberField::CpuCores => column(&|row| none_if_zero(described.cpu_cores(row))),
            NumberField::MemoryMb => column(&|row| hot.memory_mb(row)),
            NumberField::DiskGb => column(&|row| hot.disk_gb(row)),
            NumberField::LoadAverage1m
            | NumberField::LoadAverage5m
            | NumberField::LoadAverage15m
            | NumberField::TemperatureCelsius
            | NumberField::BatteryPercent
            | NumberField::SignalDbm => self.stats(condition, among, |bytes| stats::number(bytes, field)),
        }
    }

    /// A number that is read from the device's last report.
    fn stats(&self, condition: &Condition, among: &Bitmap, read: impl Fn(&[u8]) -> Option<f64>) -> Bitmap {
        among.filter(|row| {
            let number =
                self.rows.described.entry(row).and_then(|entry: &std::sync::Arc<DeviceEntry>| entry.with_stats(&read));
            number.is_some_and(|number| condition.holds_for_number(number))
        })
    }

    fn ids(&self, ids: &[(u128, Box<str>)], among: &Bitmap) -> Bitmap {
        let described = self.rows.described;
        among.filter(|row| {
            let prefix = described.id_prefix(row);
            let first = ids.partition_point(|(wanted, _)| *wanted < prefix);
            let same = ids[first..].iter().take_while(|(wanted, _)| *wanted == prefix);
            same.into_iter().any(|(_, wanted)| **wanted == *described.id(row))
        })
    }

    fn texts(&mut self, column: &TextColumn, condition: &Condition, among: &Bitmap) -> Bitmap {
        let described = self.rows.described;
        match column {
            TextColumn::Nowhere => Bitmap::default(),
            TextColumn::Id => among.filter(|row| condition.holds_for_text(described.id(row))),
            TextColumn::Symbols(column) => {
                let mut verdicts = Verdicts::of(described, condition, self.scratch);
                among.filter(|row| verdicts.holds(described.symbol(row, *column)))
            }
            TextColumn::Attributes(key) => {
                let mut verdicts = Verdicts::of(described, condition, self.scratch);
                among.filter(|row| described.values(row, *key).any(|value| verdicts.holds(value)))
            }
        }
    }
}

fn holds(condition: &Condition, number: f64) -> bool {
    !number.is_nan() && condition.holds_for_number(number)
}

/// Asks a condition once for each different text of a chunk.
struct Verdicts<'a> {
    described: &'a Described,
    condition: &'a Condition,
    known: &'a mut [Verdict],
}

impl<'a> Verdicts<'a> {
    fn of(described: &'a Described, condition: &'a Condition, scratch: &'a mut Scratch) -> Self {
        scratch.verdicts.clear();
        scratch.verdicts.resize(described.texts().end(), Verdict::NotAsked);
        Self { described, condition, known: &mut scratch.verdicts }
    }

    fn holds(&mut self, symbol: Symbol) -> bool {
        let Some(text) = self.described.texts().get(symbol) else { return false };
        let verdict = &mut self.known[symbol.index()];
        if *verdict == Verdict::NotAsked {
            *verdict = if self.condition.holds_for_text(text) { Verdict::Holds } else { Verdict::Fails };
        }
        *verdict == Verdict::Holds
    }
}
