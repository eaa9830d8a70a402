//! The tables of a cluster, made of the statements for a single server: one source for both. Pure.
//!
//! | for a single server | on a cluster |
//! |---|---|
//! | `CREATE TABLE x (…) ENGINE = MergeTree` | `x_local` with `ReplicatedMergeTree`, then `x` with `Distributed` over it |
//! | `ALTER TABLE x` of its columns | the same of `x_local`, then of `x` |
//! | any other `ALTER TABLE x` | the same of `x_local` |
//!
//! Each `ON CLUSTER`. ClickHouse puts its macros `{shard}`, `{replica}` and `{database}` in for themselves.
//!
//! A migration's checksum is that of its file, so it says which statements were applied and not in which of the two
//! forms; that is told by the engine of the tables ([`Arrangement`]).
use crate::telemetry::clickhouse::cluster::{local, quoted, Cluster};

/// Where replicas of a shard's table find each other.
const PATH: &str = "/clickhouse/tables/{shard}/{database}";

/// A token is remembered for 10,000 inserts and this long, in seconds: a week, for a fleetd that was away. ClickHouse's
/// default is an hour.
const DEDUPLICATION_SECONDS: u32 = 604_800;

/// Engines that have a replicated form, each with whether its rows replace or join those of the same key: then all of them
/// must be on one shard.
const ENGINES: [(&str, bool); 3] = [("MergeTree", false), ("ReplacingMergeTree", true), ("AggregatingMergeTree", true)];

/// Whether a database was made for a single server or for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    Single,
    Cluster,
}

impl Arrangement {
    /// By the engine of a table that the migrations made.
    pub fn of_engine(engine: &str) -> Self {
        if engine == "Distributed" {
            Self::Cluster
        } else {
            Self::Single
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "a single server",
            Self::Cluster => "a cluster",
        }
    }
}

/// A statement of a form that is not known here: a migration has to be written otherwise, or this file be taught.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}, which cannot be applied to a cluster: {statement}")]
pub struct NotForCluster {
    what: &'static str,
    /// Its first line.
    statement: String,
}

/// What stands for `statement` on a cluster, in the order to be applied.
///
/// # Errors
/// For what is neither a `CREATE TABLE` of an engine that is known here nor an `ALTER TABLE` of one change.
pub fn statements(statement: &str, cluster: &Cluster, database: &str) -> Result<Vec<String>, NotForCluster> {
    let refused = |what| NotForCluster { what, statement: statement.lines().next().unwrap_or_default().to_owned() };
    if let Some(rest) = statement.strip_prefix("ALTER TABLE ") {
        let (table, change) = rest.split_once(' ').ok_or_else(|| refused("an ALTER without a change"))?;
        return alter(table, change, cluster).ok_or_else(|| refused("an ALTER of several changes at once"));
    }
    let rest = statement.strip_prefix("CREATE TABLE IF NOT EXISTS ");
    let create = rest.and_then(Create::read).ok_or_else(|| refused("neither a CREATE TABLE nor an ALTER TABLE"))?;
    let engine = create.replicated(&format!("{PATH}/{}", create.table), "{replica}");
    let engine = engine.ok_or_else(|| refused("an engine that has no replicated form"))?;
    let key = create.sharding_key().ok_or_else(|| refused("a table without a key to order it by"))?;
    let (on, table, kept) = (cluster.clause(), create.table, local(create.table));
    let columns = create.columns().join(",\n    ");
    Ok(vec![
        format!("CREATE TABLE IF NOT EXISTS {kept}{on}\n({}\n)\nENGINE = {engine}", create.body),
        format!(
            "CREATE TABLE IF NOT EXISTS {table}{on}\n(\n    {columns}\n)\nENGINE = Distributed('{}', {}, {}, {key})",
            cluster.name(),
            quoted(database),
            quoted(&kept),
        ),
    ])
}

/// The list of migrations: whole on every node, because each must know it and it is read where the statement arrives.
pub fn bookkeeping(statement: &str, cluster: &Cluster) -> Option<String> {
    let create = Create::read(statement.strip_prefix("CREATE TABLE IF NOT EXISTS ")?)?;
    let path = format!("/clickhouse/tables/{{database}}/{}", create.table);
    let engine = create.replicated(&path, "{shard}-{replica}")?;
    Some(format!("CREATE TABLE IF NOT EXISTS {}{} ({}) ENGINE = {engine}", create.table, cluster.clause(), create.body))
}

fn alter(table: &str, change: &str, cluster: &Cluster) -> Option<Vec<String>> {
    if top_level(change).len() > 1 {
        return None;
    }
    let on = cluster.clause();
    let mut statements = vec![format!("ALTER TABLE {}{on} {change}", local(table))];
    let is_of_columns = ["ADD COLUMN ", "DROP COLUMN ", "RENAME COLUMN ", "MODIFY COLUMN "]
        .iter()
        .any(|prefix| change.starts_with(prefix));
    // How values are stored is the shards' affair; a column that is given no type is only stored otherwise.
    let plain = without_codec(change);
    let modified = plain.strip_prefix("MODIFY COLUMN ").map(|rest| rest.strip_prefix("IF EXISTS ").unwrap_or(rest));
    let is_storage_alone = modified.is_some_and(|rest| !rest.trim_end().contains(' '));
    if is_of_columns && !is_storage_alone {
        statements.push(format!("ALTER TABLE {table}{on} {plain}"));
    }
    Some(statements)
}

/// The parts of a CREATE TABLE.
struct Create<'a> {
    table: &'a str,
    /// Between the outer parentheses.
    body: &'a str,
    /// As `MergeTree`.
    engine: &'a str,
    /// The engine's argument, as `generation`.
    argument: Option<&'a str>,
    /// What follows the engine.
    rest: &'a str,
}

impl<'a> Create<'a> {
    /// Reads what follows `CREATE TABLE IF NOT EXISTS `.
    fn read(text: &'a str) -> Option<Self> {
        let (table, body) = text.split_once('(')?;
        let end = closing(body)?;
        let (body, rest) = (body[..end].trim_end(), body[end + 1..].trim_start());
        let engine = rest.strip_prefix("ENGINE = ")?;
        let end = engine.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(engine.len());
        let (engine, rest) = engine.split_at(end);
        let (argument, rest) = match rest.strip_prefix('(') {
            Some(inner) => {
                let end = closing(inner)?;
                (Some(&inner[..end]), &inner[end + 1..])
            }
            None => (None, rest),
        };
        Some(Self { table: table.trim(), body, engine, argument, rest })
    }

    /// The engine and all that follows it, replicated.
    fn replicated(&self, path: &str, replica: &str) -> Option<String> {
        ENGINES.iter().find(|(engine, _)| *engine == self.engine)?;
        let argument = self.argument.map(|argument| format!(", {argument}")).unwrap_or_default();
        let window = "non_replicated_deduplication_window";
        let replicated = format!("replicated_deduplication_window_seconds = {DEDUPLICATION_SECONDS}, {}", &window[4..]);
        let rest = self.rest.replace(window, &replicated);
        Some(format!("Replicated{}('{path}', '{replica}'{argument}){rest}", self.engine))
    }

    /// The columns with their types and defaults: what a Distributed table is declared with.
    fn columns(&self) -> Vec<String> {
        let is_column = |part: &&str| !["INDEX ", "PROJECTION ", "CONSTRAINT "].iter().any(|not| part.starts_with(not));
        top_level(self.body).into_iter().filter(is_column).map(without_codec).collect()
    }

    /// On which shard a row is. One that replaces or joins another has the same whole sorting key, and so the same shard;
    /// the others lie together by the first column of theirs: the rows of a device on one shard.
    fn sharding_key(&self) -> Option<String> {
        let key = self.rest.split_once("ORDER BY ")?.1;
        let columns = match key.strip_prefix('(') {
            Some(inner) => top_level(&inner[..closing(inner)?]),
            None => vec![key.split_whitespace().next()?],
        };
        let takes_all = ENGINES.contains(&(self.engine, true));
        let taken = if takes_all { columns.len() } else { 1 };
        Some(format!("cityHash64({})", columns[..taken].join(", ")))
    }
}

/// Where the parenthesis closes that was opened just before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    let mut quotes = false;
    for (at, c) in text.char_indices() {
        match c {
            '\'' => quotes = !quotes,
            '(' if !quotes => depth += 1,
            ')' if !quotes => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The parts between the commas that are within no parentheses.
fn top_level(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut quotes, mut from) = (0_usize, false, 0);
    for (at, c) in text.char_indices() {
        match c {
            '\'' => quotes = !quotes,
            '(' if !quotes => depth += 1,
            ')' if !quotes => depth = depth.saturating_sub(1),
            ',' if !quotes && depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

fn without_codec(column: &str) -> String {
    let Some((before, codec)) = column.split_once(" CODEC(") else { return column.to_owned() };
    format!("{before}{}", closing(codec).map_or("", |end| &codec[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::super::{BOOKKEEPING, MIGRATIONS};
    use super::*;

    fn fleet() -> Cluster {
        Cluster::named("fleet").expect("a name")
    }

    fn on_cluster(statement: &str) -> Vec<String> {
        statements(statement, &fleet(), "fleetd").unwrap_or_else(|refused| panic!("{refused}"))
    }

    #[test]
    fn a_table_becomes_a_replicated_one_and_a_distributed_one_over_it() {
        let made = on_cluster(
            "CREATE TABLE IF NOT EXISTS t\n(\n    a String CODEC(Delta, ZSTD(1)),\n    b Enum8('x, (' = 1),\n    \
             c DateTime DEFAULT now() CODEC(ZSTD(1)),\n    INDEX i a TYPE minmax\n)\nENGINE = MergeTree\n\
             PARTITION BY toDate(c)\nORDER BY (a, b)\nSETTINGS non_replicated_deduplication_window = 7, x = 1",
        );
        assert_eq!(
            made,
            [
                "CREATE TABLE IF NOT EXISTS t_local ON CLUSTER 'fleet'\n(\n    a String CODEC(Delta, ZSTD(1)),\n    \
                 b Enum8('x, (' = 1),\n    c DateTime DEFAULT now() CODEC(ZSTD(1)),\n    INDEX i a TYPE minmax\n)\n\
                 ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/t', '{replica}')\n\
                 PARTITION BY toDate(c)\nORDER BY (a, b)\nSETTINGS replicated_deduplication_window_seconds = 604800, \
                 replicated_deduplication_window = 7, x = 1",
                "CREATE TABLE IF NOT EXISTS t ON CLUSTER 'fleet'\n(\n    a String,\n    b Enum8('x, (' = 1),\n    \
                 c DateTime DEFAULT now()\n)\nENGINE = Distributed('fleet', 'fleetd', 't_local', cityHash64(a))",
            ]
        );
    }

    #[test]
    fn rows_that_replace_each_other_share_a_shard() {
        let made = on_cluster(
            "CREATE TABLE IF NOT EXISTS t\n(\n    a UInt8,\n    b UInt8,\n    v UInt8\n)\n\
             ENGINE = ReplacingMergeTree(v)\nORDER BY (a, b)",
        );
        let engine = "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/t', '{replica}', v)\nORDER";
        assert!(made[0].contains(engine), "{}", made[0]);
        assert!(made[1].ends_with("cityHash64(a, b))"), "{}", made[1]);
        let made = on_cluster(
            "CREATE TABLE IF NOT EXISTS t\n(\n    a UInt8,\n    v SimpleAggregateFunction(max, UInt8)\n)\n\
             ENGINE = AggregatingMergeTree\nORDER BY (a)",
        );
        let engine = "ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/{database}/t', '{replica}')\nORDER";
        assert!(made[0].contains(engine), "{}", made[0]);
    }

    #[test]
    fn a_distributed_table_follows_in_its_columns_and_not_in_how_they_are_stored() {
        for (change, of_both) in [
            ("ADD COLUMN IF NOT EXISTS a String", true),
            ("DROP COLUMN IF EXISTS a", true),
            ("MODIFY COLUMN a Decimal(9, 2)", true),
            ("MODIFY COLUMN a CODEC(Delta, ZSTD(1))", false),
            ("MODIFY COLUMN IF EXISTS a CODEC(ZSTD(1))", false),
            ("ADD INDEX IF NOT EXISTS i a TYPE minmax GRANULARITY 1", false),
            ("MODIFY SETTING x = 1", false),
        ] {
            let mut expected = vec![format!("ALTER TABLE t_local ON CLUSTER 'fleet' {change}")];
            expected.extend(of_both.then(|| format!("ALTER TABLE t ON CLUSTER 'fleet' {change}")));
            assert_eq!(on_cluster(&format!("ALTER TABLE t {change}")), expected);
        }
        let coded = on_cluster("ALTER TABLE t ADD COLUMN IF NOT EXISTS a String CODEC(ZSTD(1)) AFTER b");
        assert_eq!(coded[1], "ALTER TABLE t ON CLUSTER 'fleet' ADD COLUMN IF NOT EXISTS a String AFTER b");
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for statement in [
            "CREATE MATERIALIZED VIEW v TO t AS SELECT 1",
            "CREATE TABLE IF NOT EXISTS t (a UInt8) ENGINE = SummingMergeTree ORDER BY a",
            "CREATE TABLE IF NOT EXISTS t (a UInt8) ENGINE = MergeTree",
            "ALTER TABLE t ADD COLUMN a UInt8, ADD COLUMN b UInt8",
            "DROP TABLE IF EXISTS t",
        ] {
            let refused = statements(statement, &fleet(), "fleetd").expect_err(statement);
            assert!(refused.to_string().ends_with(statement), "{refused}");
        }
    }

    #[test]
    fn every_statement_of_every_migration_has_its_form_for_a_cluster() {
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements()) {
            let made = on_cluster(&statement);
            assert!(made.iter().all(|one| one.contains(" ON CLUSTER 'fleet'")), "{made:?}");
            assert!(made.iter().all(|one| one.contains(" IF NOT EXISTS ") || one.contains(" IF EXISTS ")), "{made:?}");
            assert!(made.iter().all(|one| !one.contains("non_replicated")), "{made:?}");
            if statement.starts_with("CREATE TABLE") {
                assert_eq!(made.len(), 2, "{made:?}");
                assert!(
                    made[0].contains("ENGINE = Replicated") && made[1].contains("ENGINE = Distributed("),
                    "{made:?}"
                );
                assert!(!made[1].contains("CODEC") && !made[1].contains("INDEX"), "{}", made[1]);
            }
        }
        let list = bookkeeping(BOOKKEEPING, &fleet()).expect("understood");
        assert!(list
            .contains("ReplicatedMergeTree('/clickhouse/tables/{database}/schema_migrations', '{shard}-{replica}')"));
    }

    #[test]
    fn a_database_is_known_by_the_engine_of_its_tables() {
        assert_eq!(Arrangement::of_engine("Distributed"), Arrangement::Cluster);
        assert_eq!(Arrangement::of_engine("MergeTree"), Arrangement::Single);
    }
}
