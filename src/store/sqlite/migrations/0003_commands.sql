-- Commands, and how far each has come on each of its devices.
CREATE TABLE commands (
    pk           INTEGER PRIMARY KEY AUTOINCREMENT,          -- grows with time: newest first is pk descending
    id           TEXT    NOT NULL UNIQUE,                    -- a UUID
    request_id   TEXT,                                       -- the caller's own; NULL: none, or older than a day
    created_by   TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    parameters   TEXT    NOT NULL,                           -- a JSON object of strings
    payload      BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,                           -- Unix milliseconds, as all times here
    expires_at   INTEGER NOT NULL,
    timeout_ms   INTEGER,
    sweep_at     INTEGER,                                    -- when to look for targets that are late; NULL: none is left
    -- 0 while its targets are being written: no device gets it, and a start removes it.
    is_complete  INTEGER NOT NULL CHECK (is_complete IN (0, 1)),
    targets      INTEGER NOT NULL,
    refused      INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX commands_by_request ON commands (created_by, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX commands_by_expiry ON commands (expires_at);
CREATE INDEX commands_to_sweep ON commands (sweep_at) WHERE sweep_at IS NOT NULL;

-- state: 1 QUEUED, 2 DELIVERED, 3 ACKED, 4 SUCCEEDED, 5 FAILED, 6 EXPIRED, 7 CANCELED, as in the contract.
CREATE TABLE command_targets (
    command_pk   INTEGER NOT NULL,
    device_pk    INTEGER NOT NULL,
    state        INTEGER NOT NULL CHECK (state BETWEEN 1 AND 7),
    attempts     INTEGER NOT NULL,
    delivered_at INTEGER,
    acked_at     INTEGER,
    finished_at  INTEGER,
    result       BLOB,                                       -- protobuf fleetd.v1.CommandResult
    PRIMARY KEY (command_pk, device_pk)
) STRICT, WITHOUT ROWID;

CREATE INDEX command_targets_by_device ON command_targets (device_pk, command_pk);
-- What a heartbeat looks for, and nothing else.
CREATE INDEX command_targets_pending ON command_targets (device_pk, command_pk) WHERE state <= 3;
CREATE INDEX command_targets_by_state ON command_targets (state, command_pk, device_pk);

CREATE TRIGGER device_commands_removed AFTER DELETE ON devices
BEGIN DELETE FROM command_targets WHERE device_pk = OLD.pk; END;
