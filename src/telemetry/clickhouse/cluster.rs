//! A ClickHouse cluster: its name, and what is asked of ClickHouse differently because there is one.
//!
//! Every table is then two: `x_local`, replicated, with the rows of a shard, and `x`, `Distributed`, with those of all
//! (`telemetry::schema` makes them). Statements go on naming `x`; the settings here make that mean the same as on a
//! single server.

/// What ends the name of the table that a shard keeps.
const LOCAL: &str = "_local";

/// The longest name: ZooKeeper paths and system tables carry it.
const MAX_NAME_BYTES: usize = 128;

/// Sent with every statement to a cluster.
///
/// * `distributed_foreground_insert`: an insert is acknowledged when the shards have it, not when it lies in a queue of
///   files on the node that took it.
/// * `parallel_distributed_insert_select`: 2 by default, which would let each shard aggregate and keep its own rows, past
///   the sharding key: a row of a rollup would be there once a shard, and replace none of its like.
/// * `distributed_product_mode`: `IN (SELECT … FROM x)` within a question to `y` is refused by default.
/// * `distributed_ddl_*`: a node that is down does what it missed when it is back; the others are waited for, less long
///   than the handle waits for its answer.
pub(super) const SETTINGS: [(&str, &str); 5] = [
    ("distributed_foreground_insert", "1"),
    ("parallel_distributed_insert_select", "0"),
    ("distributed_product_mode", "global"),
    ("distributed_ddl_output_mode", "none_only_active"),
    ("distributed_ddl_task_timeout", "25"),
];

/// The name of a cluster as ClickHouse's `remote_servers` has it, checked: it becomes part of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster(String);

impl Cluster {
    /// What a name is made of, for messages.
    pub const EXPECTED: &str = "the cluster's name in ClickHouse's remote_servers: A-Z a-z 0-9 _, no digit first";

    /// `None` for what is no name of a cluster.
    pub fn named(name: &str) -> Option<Self> {
        let is_name = name.len() <= MAX_NAME_BYTES
            && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_name.then(|| Self(name.to_owned()))
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// ` ON CLUSTER 'name'`, to follow the name of what a statement creates or alters.
    pub fn clause(&self) -> String {
        format!(" ON CLUSTER '{}'", self.0)
    }

    /// A table of every replica, each row as often as it has replicas.
    pub fn all_replicas(&self, database: &str, table: &str) -> String {
        format!("clusterAllReplicas('{}', {}, {})", self.0, quoted(database), quoted(table))
    }
}

/// The name of the table that a shard keeps of `table`.
pub fn local(table: &str) -> String {
    format!("{table}{LOCAL}")
}

/// A text as a literal of SQL.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_word_names_a_cluster() {
        for name in ["fleet", "_fleet_1", "F"] {
            assert_eq!(Cluster::named(name).expect(name).clause(), format!(" ON CLUSTER '{name}'"));
        }
        for name in ["", "1fleet", "fleet-1", "fleet'", "{cluster}", "flotte ", "größe", &"x".repeat(129)] {
            assert_eq!(Cluster::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_database_of_any_name_stays_a_literal() {
        let cluster = Cluster::named("fleet").expect("a name");
        let table = cluster.all_replicas(r"a'b\c", "heartbeats_local");
        assert_eq!(table, r"clusterAllReplicas('fleet', 'a\'b\\c', 'heartbeats_local')");
    }
}
