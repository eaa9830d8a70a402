-- Files of updates; their bytes are in the artifact store, named by their checksum.
CREATE TABLE binaries (
    pk           INTEGER PRIMARY KEY AUTOINCREMENT,          -- the number in bin-001; never given twice
    name         TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    platform     TEXT    NOT NULL,
    checksum     BLOB    NOT NULL CHECK (length(checksum) = 32),
    size_bytes   INTEGER NOT NULL CHECK (size_bytes >= 0),
    uploaded_at  INTEGER NOT NULL,                           -- Unix milliseconds
    UNIQUE (checksum, name, version, platform)
) STRICT;
