//! Which migrations are still to be applied: pure, so that every refusal is tested without a database.
use sha2::{Digest, Sha256};

use super::cluster::{Arrangement, NotForCluster};

/// One numbered file of statements, compiled in.
///
/// ClickHouse has no transaction around several statements, so each statement must be idempotent: a server that dies
/// in the middle applies the whole file again at its next start.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    pub version: u32,
    pub name: &'static str,
    pub sql: &'static str,
}

impl Migration {
    /// SHA-256 of the file, in hex: what was applied, to the letter.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The file's statements: comment lines end at the line, statements at a semicolon that ends a line.
    pub fn statements(&self) -> Vec<String> {
        let code: Vec<_> = self.sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        let code = code.join("\n");
        code.split(";\n")
            .map(|part| part.trim_end_matches(';').trim())
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// What the database says was applied.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Applied {
    pub version: u32,
    pub checksum: String,
}

/// Why the schema cannot be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSchema {
    #[error(
        "the database has schema version {found}, this fleetd knows versions up to {known}: \
         run the newer fleetd that made it, or another database"
    )]
    Newer { found: u32, known: u32 },
    #[error(
        "migration {version} ({name}) was applied with checksum {applied}, this fleetd has it with {compiled}: \
         it was altered after its release; run the fleetd that applied it, or another database"
    )]
    Altered { version: u32, name: &'static str, applied: String, compiled: String },
    #[error(
        "the database was made for {}, and clickhouse_cluster asks for {}: \
         set clickhouse_cluster as it was when the database was made, or name another clickhouse_database",
        found.name(), wanted.name()
    )]
    Arranged { found: Arrangement, wanted: Arrangement },
    #[error(transparent)]
    NotForCluster(#[from] NotForCluster),
}

/// The migrations of `known` that `applied` lacks, in order.
pub fn pending<'a>(known: &'a [Migration], applied: &[Applied]) -> Result<Vec<&'a Migration>, RefusedSchema> {
    let last = known.last().map_or(0, |migration| migration.version);
    if let Some(newest) = applied.iter().map(|one| one.version).max().filter(|newest| *newest > last) {
        return Err(RefusedSchema::Newer { found: newest, known: last });
    }
    let mut pending = Vec::new();
    for migration in known {
        let mut found = applied.iter().filter(|one| one.version == migration.version).peekable();
        if found.peek().is_none() {
            pending.push(migration);
        }
        let compiled = migration.checksum();
        if let Some(other) = found.find(|one| one.checksum != compiled) {
            return Err(RefusedSchema::Altered {
                version: migration.version,
                name: migration.name,
                applied: other.checksum.clone(),
                compiled,
            });
        }
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Migration; 2] = [
        Migration { version: 1, name: "one", sql: "-- why\nCREATE TABLE a;\n\nCREATE TABLE b\n(\n    x UInt8\n);\n" },
        Migration { version: 2, name: "two", sql: "CREATE TABLE c;" },
    ];

    fn applied(version: u32) -> Applied {
        let checksum = KNOWN.iter().find(|one| one.version == version).map_or("?".into(), Migration::checksum);
        Applied { version, checksum }
    }

    #[test]
    fn a_file_falls_into_its_statements() {
        assert_eq!(KNOWN[0].statements(), ["CREATE TABLE a", "CREATE TABLE b\n(\n    x UInt8\n)"]);
        assert_eq!(KNOWN[1].statements(), ["CREATE TABLE c"]);
    }

    #[test]
    fn only_what_was_not_applied_is_pending_in_order() {
        let versions = |applied: &[Applied]| -> Vec<u32> {
            pending(&KNOWN, applied).expect("accepted").iter().map(|one| one.version).collect()
        };
        assert_eq!(versions(&[]), [1, 2]);
        assert_eq!(versions(&[applied(1)]), [2]);
        assert_eq!(versions(&[applied(2), applied(1), applied(1)]), [0u32; 0]);
    }

    #[test]
    fn a_newer_database_is_refused() {
        assert_eq!(
            pending(&KNOWN, &[applied(1), applied(2), applied(3)]).expect_err("newer"),
            RefusedSchema::Newer { found: 3, known: 2 }
        );
    }

    #[test]
    fn a_migration_that_was_altered_after_it_was_applied_is_refused() {
        let forged = Applied { version: 1, checksum: "00".into() };
        let refused = pending(&KNOWN, &[applied(1), forged]).expect_err("altered");
        assert!(matches!(refused, RefusedSchema::Altered { version: 1, .. }), "{refused}");
    }
}
