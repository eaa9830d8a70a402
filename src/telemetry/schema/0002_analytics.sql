-- What analytics needs beside the rows themselves: the type of a device in its heartbeats, the server's own numbers, and
-- tables that are computed from heartbeats (`telemetry::rollup` fills them; no view does, see docs/decisions/0010).
--
-- timestamp_range: parts hold one day of receipt, and most devices report at once, so a question about a span of time
-- skips the parts of other days by it. row_range: finds the few rows that no computed table has yet; of two columns, since
-- the condition joins them by OR, which an index of one of them says nothing about.

ALTER TABLE heartbeats ADD COLUMN IF NOT EXISTS device_type LowCardinality(String);
ALTER TABLE heartbeats ADD INDEX IF NOT EXISTS timestamp_range timestamp TYPE minmax GRANULARITY 1;
ALTER TABLE heartbeats ADD INDEX IF NOT EXISTS row_range (journal_id, seq) TYPE minmax GRANULARITY 1;
ALTER TABLE processes ADD INDEX IF NOT EXISTS timestamp_range timestamp TYPE minmax GRANULARITY 1;
ALTER TABLE device_events ADD INDEX IF NOT EXISTS timestamp_range timestamp TYPE minmax GRANULARITY 1;
ALTER TABLE deployment_events ADD INDEX IF NOT EXISTS timestamp_range timestamp TYPE minmax GRANULARITY 1;

-- Codecs, chosen again by what devices report (docs/storage.md): readings are noisy, so Gorilla finds nothing to leave out.
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS seq UInt64 CODEC(DoubleDelta, ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS cpu_percent Nullable(Float64) CODEC(ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS disk_used_gb Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS load_average_1m Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS load_average_5m Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS load_average_15m Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS temperature_celsius Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE heartbeats MODIFY COLUMN IF EXISTS battery_percent Nullable(Float64) CODEC(Delta(8), ZSTD(1));
ALTER TABLE processes MODIFY COLUMN IF EXISTS seq UInt64 CODEC(DoubleDelta, ZSTD(1));
ALTER TABLE processes MODIFY COLUMN IF EXISTS received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1));
ALTER TABLE processes MODIFY COLUMN IF EXISTS cpu_percent Nullable(Float64) CODEC(ZSTD(1));
ALTER TABLE processes MODIFY COLUMN IF EXISTS uptime_seconds UInt64 CODEC(DoubleDelta, ZSTD(1));

-- What `/metrics` says, sampled, so that Grafana needs no second source to show the health of the server itself.
CREATE TABLE IF NOT EXISTS server_metrics
(
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(DoubleDelta, ZSTD(1)),
    row_index UInt16 CODEC(Delta, ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    name String CODEC(ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    value Float64 CODEC(Delta(8), ZSTD(1)),
    INDEX seq_range seq TYPE minmax GRANULARITY 1,
    INDEX timestamp_range timestamp TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (name, timestamp)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

-- The values of a metric over a minute, by type and version of the devices that reported them.
--
-- A row covers the heartbeats of one range of a journal: from_seq to through_seq, both included. Ranges of a journal do
-- not overlap, so a heartbeat is in one row of each metric that it reports, however late it came. Building a range again
-- makes the same rows with a greater generation, which replace the others: read with FINAL. A row of count 0 says that
-- the range has no such values any more; its other columns change no merge (min is inf, max is -inf).
--
-- metric: a gauge, metrics.NAME for one of the fleet's own, or heartbeats, whose value is 1 for each.
-- received_at: the earliest of the heartbeats in the row. Once heartbeats that old are dropped, it cannot be computed again.
-- seq_range: finds the rows of a range, by which they are audited.
-- sketch: DDSketch with a relative accuracy of 1 %. Its buckets are fixed, so merging loses nothing: sketches of parts
-- give the same quantile as a sketch of all.
CREATE TABLE IF NOT EXISTS rollup_1m
(
    metric LowCardinality(String),
    device_type LowCardinality(String),
    version LowCardinality(String),
    time DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    journal_id UUID CODEC(ZSTD(1)),
    from_seq UInt64 CODEC(Delta, ZSTD(1)),
    through_seq UInt64 CODEC(Delta, ZSTD(1)),
    generation UInt32 CODEC(T64, ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    count UInt64 CODEC(T64, ZSTD(1)),
    sum Float64 CODEC(ZSTD(1)),
    min Float64 CODEC(ZSTD(1)),
    max Float64 CODEC(ZSTD(1)),
    last Float64 CODEC(ZSTD(1)),
    last_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    last_seq UInt64 CODEC(Delta, ZSTD(1)),
    sketch AggregateFunction(quantilesDD(0.01, 0.5, 0.9, 0.95, 0.99), Float64) CODEC(ZSTD(1)),
    INDEX seq_range through_seq TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(time)
ORDER BY (metric, device_type, version, time, journal_id, from_seq)
SETTINGS non_replicated_deduplication_window = 1000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1;

-- The same over an hour, merged from whole ranges of rollup_1m.
CREATE TABLE IF NOT EXISTS rollup_1h
(
    metric LowCardinality(String),
    device_type LowCardinality(String),
    version LowCardinality(String),
    time DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    journal_id UUID CODEC(ZSTD(1)),
    from_seq UInt64 CODEC(Delta, ZSTD(1)),
    through_seq UInt64 CODEC(Delta, ZSTD(1)),
    generation UInt32 CODEC(T64, ZSTD(1)),
    count UInt64 CODEC(T64, ZSTD(1)),
    sum Float64 CODEC(ZSTD(1)),
    min Float64 CODEC(ZSTD(1)),
    max Float64 CODEC(ZSTD(1)),
    last Float64 CODEC(ZSTD(1)),
    last_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    last_seq UInt64 CODEC(Delta, ZSTD(1)),
    sketch AggregateFunction(quantilesDD(0.01, 0.5, 0.9, 0.95, 0.99), Float64) CODEC(ZSTD(1)),
    INDEX seq_range through_seq TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(time)
ORDER BY (metric, device_type, version, time, journal_id, from_seq)
SETTINGS non_replicated_deduplication_window = 1000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1;

-- The values of a device over an hour; of ranges and generations as rollup_1m. A metric that the device did not report has
-- the count 0. Quantiles of a device's hour are as large as its rows, so they are read from the rows.
CREATE TABLE IF NOT EXISTS device_1h
(
    device_id String CODEC(ZSTD(1)),
    time DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    journal_id UUID CODEC(ZSTD(1)),
    from_seq UInt64 CODEC(Delta, ZSTD(1)),
    through_seq UInt64 CODEC(Delta, ZSTD(1)),
    generation UInt32 CODEC(T64, ZSTD(1)),
    device_type LowCardinality(String),
    version LowCardinality(String),
    heartbeats UInt32 CODEC(T64, ZSTD(1)),
    first_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    last_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    cpu_usage Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    memory_usage Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    disk_usage Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    memory_used_mb Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    disk_used_gb Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    swap_used_mb Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    load_average_1m Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    load_average_5m Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    load_average_15m Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    temperature_celsius Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    battery_percent Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    signal_dbm Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    uptime_seconds Tuple(count UInt32, sum Float64, min Float64, max Float64, last Float64, last_at DateTime64(3, 'UTC'), last_seq UInt64) CODEC(ZSTD(1)),
    INDEX seq_range through_seq TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(generation)
PARTITION BY toYYYYMM(time)
ORDER BY (device_id, time, journal_id, from_seq)
SETTINGS non_replicated_deduplication_window = 1000, ttl_only_drop_parts = 1,
    fsync_after_insert = 1, fsync_part_directory = 1;

-- The last heartbeat of each device that was received, whatever the device's clock says: read with FINAL.
CREATE TABLE IF NOT EXISTS device_latest
(
    device_id String CODEC(ZSTD(1)),
    received_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    journal_id UUID CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    timestamp DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    device_type LowCardinality(String),
    version LowCardinality(String),
    state LowCardinality(String),
    message String CODEC(ZSTD(1)),
    uptime_seconds UInt64 CODEC(T64, ZSTD(1)),
    restart_count UInt32 CODEC(T64, ZSTD(1)),
    cpu_usage Nullable(Float64) CODEC(ZSTD(1)),
    memory_usage Nullable(Float64) CODEC(ZSTD(1)),
    disk_usage Nullable(Float64) CODEC(ZSTD(1)),
    memory_used_mb Nullable(Float64) CODEC(ZSTD(1)),
    disk_used_gb Nullable(Float64) CODEC(ZSTD(1)),
    swap_used_mb Nullable(Float64) CODEC(ZSTD(1)),
    load_average_1m Nullable(Float64) CODEC(ZSTD(1)),
    load_average_5m Nullable(Float64) CODEC(ZSTD(1)),
    load_average_15m Nullable(Float64) CODEC(ZSTD(1)),
    temperature_celsius Nullable(Float64) CODEC(ZSTD(1)),
    battery_percent Nullable(Float64) CODEC(ZSTD(1)),
    signal_dbm Nullable(Float64) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(received_at)
ORDER BY device_id
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- How far the computed tables are: read with max(), since numbers only grow.
--
-- through_seq: all heartbeats of the journal through this number are in the table.
-- planned_seq: where the range that begins behind it ends. Decided before the first attempt, so that whatever an attempt
-- that died left behind is replaced by the next one.
-- audited_seq: all through this number was compared with the heartbeats after these had been counted.
CREATE TABLE IF NOT EXISTS rollup_progress
(
    journal_id UUID,
    rollup LowCardinality(String),
    through_seq SimpleAggregateFunction(max, UInt64),
    planned_seq SimpleAggregateFunction(max, UInt64),
    audited_seq SimpleAggregateFunction(max, UInt64),
    built_at SimpleAggregateFunction(max, DateTime64(3, 'UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (journal_id, rollup)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Devices that a question is about, when they are too many for its text, each with the number of its group in the
-- answer. Rows are of no use once it is given.
CREATE TABLE IF NOT EXISTS device_sets
(
    set_id UUID,
    device_id String,
    group_id UInt32,
    made_at DateTime('UTC') DEFAULT now()
)
ENGINE = MergeTree
PARTITION BY toStartOfHour(made_at)
ORDER BY (set_id, device_id)
TTL made_at + INTERVAL 2 HOUR
SETTINGS ttl_only_drop_parts = 1;
