-- Exports of telemetry; the files are in the artifact store, named by the export's id.
CREATE TABLE exports (
    pk            INTEGER PRIMARY KEY AUTOINCREMENT,         -- the number in exp-001; never given twice
    form          TEXT    NOT NULL,                          -- CSV, JSON, PARQUET
    subject       TEXT    NOT NULL,                          -- DEVICE_METRICS and so on
    state         INTEGER NOT NULL,                          -- ExportState
    requested_at  INTEGER NOT NULL,                          -- Unix milliseconds
    expires_at    INTEGER NOT NULL,                          -- Unix milliseconds
    rows_written  INTEGER NOT NULL DEFAULT 0,
    size_bytes    INTEGER NOT NULL DEFAULT 0,
    checksum      BLOB    CHECK (checksum IS NULL OR length(checksum) = 32),
    message       TEXT    NOT NULL DEFAULT ''                -- why it failed
) STRICT;

CREATE INDEX exports_by_expiry ON exports (state, expires_at);
