-- The telemetry tables. Every row carries journal_id, seq and row_index, which name it: the writer asks by them which
-- rows are there. They are delta-coded and cost a few bits a row.
--
-- ORDER BY (device_id, timestamp): nearly every read is "this device, this span".
-- PARTITION BY day of received_at: the server's clock, so that a device with a wrong one opens no partitions. Parts
-- keep the span of received_at, by which the audit finds the few parts it has to read.
-- ttl_only_drop_parts: rows age out a day at a time, by dropping parts, never by rewriting them.
-- non_replicated_deduplication_window: an insert that is repeated with its token lands once.
-- fsync_*: an acknowledged part survives a power loss. min_bytes_for_wide_part keeps a fresh part to a few files, so that
-- the fsync of it is a few too.

CREATE TABLE IF NOT EXISTS heartbeats
(
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    row_index UInt16 CODEC(ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    device_id String CODEC(ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    state Enum8('UNKNOWN' = 0, 'ONLINE' = 1, 'LATE' = 2, 'OFFLINE' = 3, 'MAINTENANCE' = 4),
    uptime_seconds UInt64 CODEC(DoubleDelta, ZSTD(1)),
    last_boot DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    boot_id String CODEC(ZSTD(1)),
    restart_count UInt32 CODEC(T64, ZSTD(1)),
    message String CODEC(ZSTD(1)),
    version LowCardinality(String),
    cpu_percent Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    memory_used_mb Nullable(UInt64) CODEC(T64, ZSTD(1)),
    disk_used_gb Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    memory_total_mb UInt64 CODEC(T64, ZSTD(1)),
    disk_total_gb Float64 CODEC(Gorilla, ZSTD(1)),
    load_average_1m Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    load_average_5m Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    load_average_15m Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    temperature_celsius Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    network_rx_bytes UInt64 CODEC(Delta, ZSTD(1)),
    network_tx_bytes UInt64 CODEC(Delta, ZSTD(1)),
    disk_read_bytes UInt64 CODEC(Delta, ZSTD(1)),
    disk_write_bytes UInt64 CODEC(Delta, ZSTD(1)),
    swap_used_mb UInt64 CODEC(T64, ZSTD(1)),
    battery_percent Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    signal_dbm Nullable(Int32) CODEC(T64, ZSTD(1)),
    metrics Map(LowCardinality(String), Float64) CODEC(ZSTD(1)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (device_id, timestamp)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

CREATE TABLE IF NOT EXISTS processes
(
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    row_index UInt16 CODEC(Delta, ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    device_id String CODEC(ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    pid UInt32 CODEC(T64, ZSTD(1)),
    name LowCardinality(String),
    state Enum8('UNSPECIFIED' = 0, 'RUNNING' = 1, 'SLEEPING' = 2, 'STOPPED' = 3, 'ZOMBIE' = 4, 'FAILED' = 5),
    cpu_percent Nullable(Float64) CODEC(Gorilla, ZSTD(1)),
    memory_used_mb UInt64 CODEC(T64, ZSTD(1)),
    uptime_seconds UInt64 CODEC(T64, ZSTD(1)),
    restart_count UInt32 CODEC(T64, ZSTD(1)),
    version LowCardinality(String),
    exit_code Nullable(Int32) CODEC(T64, ZSTD(1)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (device_id, timestamp)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

CREATE TABLE IF NOT EXISTS device_events
(
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    row_index UInt16 CODEC(ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    device_id String CODEC(ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    kind LowCardinality(String),
    from_state LowCardinality(String),
    to_state LowCardinality(String),
    detail String CODEC(ZSTD(1)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (device_id, timestamp)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

CREATE TABLE IF NOT EXISTS deployment_events
(
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    row_index UInt16 CODEC(ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    deployment_id String CODEC(ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    device_id String CODEC(ZSTD(1)),
    update_id String CODEC(ZSTD(1)),
    kind LowCardinality(String),
    from_state LowCardinality(String),
    to_state LowCardinality(String),
    wave UInt32 CODEC(T64, ZSTD(1)),
    attempt UInt32 CODEC(T64, ZSTD(1)),
    detail String CODEC(ZSTD(1)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (deployment_id, timestamp)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;
