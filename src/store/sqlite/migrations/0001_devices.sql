-- Devices, and the small facts of an installation.
-- Ids compare by their bytes (SQLite's BINARY collation), as the pages of a list do.
CREATE TABLE devices (
    pk            INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE,
    key_hash      BLOB    NOT NULL CHECK (length(key_hash) = 32),  -- SHA-256 of the API key
    revision      INTEGER NOT NULL CHECK (revision > 0),
    maintenance   INTEGER NOT NULL CHECK (maintenance IN (0, 1)),
    registered_at INTEGER NOT NULL,                                -- Unix milliseconds
    last_seen     INTEGER,                                         -- Unix milliseconds; NULL: never seen
    name          TEXT    NOT NULL,
    type          TEXT    NOT NULL,
    version       TEXT    NOT NULL,
    metadata      TEXT    NOT NULL,                                -- a JSON object of strings
    labels        TEXT    NOT NULL,                                -- a JSON object of strings
    system_info   BLOB    NOT NULL                                 -- protobuf fleetd.v1.SystemInfo
) STRICT;

CREATE UNIQUE INDEX devices_by_key_hash ON devices (key_hash);

-- How many devices there are, kept by the statements that change it: counting a million takes tens of milliseconds,
-- and every page of a list prints it.
CREATE TABLE device_count (n INTEGER NOT NULL) STRICT;
INSERT INTO device_count (n) VALUES (0);
CREATE TRIGGER device_added AFTER INSERT ON devices BEGIN UPDATE device_count SET n = n + 1; END;
CREATE TRIGGER device_removed AFTER DELETE ON devices BEGIN UPDATE device_count SET n = n - 1; END;

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
