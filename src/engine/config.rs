//! ClickHouse's own configuration, written into the data directory at each start.
//!
//! Why a file: ClickHouse as a library otherwise picks up any `config.xml` of the working directory or the home
//! folder, and its built-in user may read and write every file that this process may, run executables and fetch
//! URLs. The HTTP interface has no password on loopback, so the user here gets databases, tables and nothing else.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most memory that ClickHouse may take, in bytes, unless the command line says otherwise. Batches of 50,000 rows,
/// their merges and the console's queries stay far below; a runaway query fails instead of the machine. ClickHouse
/// itself lowers it to 90 % of the machine's memory.
pub const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 4 << 30;

/// Marks, primary keys and the like are cached up to this size each, in bytes; ClickHouse's defaults are 5 GiB,
/// made for machines that do nothing else.
const CACHE_BYTES: u64 = 64 << 20;

/// Threads kept for later use, of at most as many as there is work for.
const IDLE_THREADS: u32 = 8;

/// What the user may do. No FILE, URL, REMOTE, S3 and so on (reading and writing outside the data directory), no
/// SYSTEM SHUTDOWN, no BACKUP, no dictionaries (which can read files), no users.
const GRANTS: &str = "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, \
    CREATE TEMPORARY TABLE, CREATE ARBITRARY TEMPORARY TABLE, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, \
    SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM FLUSH LOGS, INTROSPECTION";

/// Table engines that keep their data in the data directory or in memory.
const TABLE_ENGINES: [&str; 18] = [
    "MergeTree",
    "ReplacingMergeTree",
    "SummingMergeTree",
    "AggregatingMergeTree",
    "CollapsingMergeTree",
    "VersionedCollapsingMergeTree",
    "CoalescingMergeTree",
    "Memory",
    "Null",
    "Log",
    "TinyLog",
    "StripeLog",
    "Buffer",
    "Set",
    "Join",
    "Merge",
    "View",
    "MaterializedView",
];

/// Writes the configuration and returns the arguments that start ClickHouse with it.
///
/// # Errors
/// The data directory cannot be written.
pub fn prepare(data_dir: &Path, memory_limit_bytes: u64) -> io::Result<Vec<String>> {
    fs::create_dir_all(data_dir)?;
    let data_dir = data_dir.canonicalize()?;
    let users = write(&data_dir, "engine-users.xml", &users_xml())?;
    let config = write(&data_dir, "engine.xml", &config_xml(&users, memory_limit_bytes))?;
    Ok(vec![
        format!("--path={}", data_dir.join("clickhouse").display()),
        format!("--config-file={}", config.display()),
        // The library turns these on for use from notebooks; a server does not have them.
        "--implicit_select=0".to_owned(),
        "--storage_file_read_method=pread".to_owned(),
    ])
}

/// Replaces the file as a whole, so that a start after a crash never reads half of one.
fn write(folder: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let path = folder.join(name);
    let temporary = folder.join(format!("{name}.new"));
    fs::write(&temporary, text)?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}

fn config_xml(users: &Path, memory_limit_bytes: u64) -> String {
    let users = escape(&users.display().to_string());
    let caches: String = [
        "mark_cache_size",
        "index_mark_cache_size",
        "primary_index_cache_size",
        "vector_similarity_index_cache_size",
        "text_index_tokens_cache_size",
        "text_index_header_cache_size",
        "text_index_postings_cache_size",
        "parquet_metadata_cache_size",
        "iceberg_metadata_files_cache_size",
        "query_condition_cache_size",
    ]
    .iter()
    .map(|name| format!("    <{name}>{CACHE_BYTES}</{name}>\n"))
    .collect();
    // No <query_log> and its like: they would write a table a minute for nobody.
    format!(
        "<clickhouse>\n\
         \x20   <!-- Written at each start; changes are lost. -->\n\
         \x20   <users_config>{users}</users_config>\n\
         \x20   <max_server_memory_usage>{memory_limit_bytes}</max_server_memory_usage>\n\
         {caches}\
         \x20   <max_thread_pool_free_size>{IDLE_THREADS}</max_thread_pool_free_size>\n\
         \x20   <max_io_thread_pool_free_size>0</max_io_thread_pool_free_size>\n\
         \x20   <memory_worker_period_ms>1000</memory_worker_period_ms>\n\
         \x20   <global_profiler_real_time_period_ns>0</global_profiler_real_time_period_ns>\n\
         \x20   <global_profiler_cpu_time_period_ns>0</global_profiler_cpu_time_period_ns>\n\
         </clickhouse>\n"
    )
}

fn users_xml() -> String {
    let engines: String = TABLE_ENGINES
        .iter()
        .map(|engine| format!("                <query>GRANT TABLE ENGINE ON {engine}</query>\n"))
        .collect();
    format!(
        "<clickhouse>\n\
         \x20   <profiles><default></default></profiles>\n\
         \x20   <quotas><default></default></quotas>\n\
         \x20   <users>\n\
         \x20       <default>\n\
         \x20           <password></password>\n\
         \x20           <networks><ip>::/0</ip></networks>\n\
         \x20           <profile>default</profile>\n\
         \x20           <quota>default</quota>\n\
         \x20           <grants>\n\
         \x20               <query>GRANT {GRANTS} ON *.*</query>\n\
         {engines}\
         \x20           </grants>\n\
         \x20       </default>\n\
         \x20   </users>\n\
         </clickhouse>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_markup_characters_stays_a_path() {
        let xml = config_xml(Path::new("/data/a&b<c>/users.xml"), 1);
        assert!(xml.contains("<users_config>/data/a&amp;b&lt;c&gt;/users.xml</users_config>"), "{xml}");
    }

    #[test]
    fn nothing_outside_the_data_directory_is_granted() {
        let xml = users_xml();
        for source in ["FILE", "URL", "REMOTE", "S3", "SHUTDOWN", "BACKUP", "DICTIONARY", "GRANT ALL"] {
            assert!(!xml.contains(source), "{source} is granted:\n{xml}");
        }
    }
}
