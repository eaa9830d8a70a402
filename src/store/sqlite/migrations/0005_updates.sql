-- Updates, deployments, and the devices in them. Ids are not kept: `update-001` is the update whose pk is 1.
CREATE TABLE updates (
    pk           INTEGER PRIMARY KEY AUTOINCREMENT,          -- grows with time: newest first is pk descending
    name         TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,                           -- Unix milliseconds, as all times here
    body         BLOB    NOT NULL,                           -- protobuf fleetd.v1.Update without its id
    UNIQUE (name, version)
) STRICT;

CREATE INDEX updates_by_version ON updates (version);

CREATE TABLE deployments (
    pk            INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 0 while its devices are being written: nobody sees it, and the next start removes it.
    is_complete   INTEGER NOT NULL CHECK (is_complete IN (0, 1)),
    state         INTEGER NOT NULL,                          -- DeploymentStatus.State
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER,
    update_id     TEXT    NOT NULL,
    request_id    TEXT,                                      -- the caller's own; NULL: none, or older than a day
    created_by    TEXT    NOT NULL,
    device_filter TEXT    NOT NULL,
    config        BLOB    NOT NULL                           -- protobuf fleetd.v1.DeploymentConfig
) STRICT;

CREATE UNIQUE INDEX deployments_by_request ON deployments (created_by, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX deployments_by_state ON deployments (state) WHERE is_complete = 1;
CREATE INDEX deployments_by_update ON deployments (update_id, state) WHERE is_complete = 1;
-- What a start takes up again.
CREATE INDEX deployments_open ON deployments (pk) WHERE finished_at IS NULL AND is_complete = 1;
CREATE INDEX deployments_incomplete ON deployments (pk) WHERE is_complete = 0;

-- What every step rewrites, apart from the configuration, which it does not. There is one for each complete deployment.
CREATE TABLE deployment_heads (
    deployment_pk INTEGER PRIMARY KEY,
    head          BLOB NOT NULL                              -- as crate::rollout encodes it
) STRICT;

-- key: deployments.pk * 2^32 + place. Devices work in the order of their places, so those that change in the same
-- minute share pages, a load reads the table from front to back, and a new deployment is appended.
-- A device's id is its text, not devices.pk: history outlives the registration.
CREATE TABLE deployment_devices (
    key           INTEGER PRIMARY KEY,
    state         INTEGER NOT NULL,                          -- DeviceDeploymentStatus.State
    offered_at    INTEGER,
    updated_at    INTEGER NOT NULL,
    device_id     TEXT    NOT NULL,
    from_version  TEXT    NOT NULL,
    message       TEXT    NOT NULL,
    record        BLOB    NOT NULL                           -- as crate::rollout encodes it
) STRICT;

-- The one way from a device's id to its place, and the order of pages. A table rather than an index, so that a new
-- deployment's rows can be written in this order: as an index, each chunk of devices would dirty as many pages as it
-- has devices. The state comes before the id: but for the first and the last one, a device's changes of state fall
-- on the few pages of the states that only active devices have. A device is found by asking for each state that
-- deployment_counts names.
CREATE TABLE deployment_devices_by_state (
    deployment_pk INTEGER NOT NULL,
    state         INTEGER NOT NULL,
    device_id     TEXT    NOT NULL,
    place         INTEGER NOT NULL,
    PRIMARY KEY (deployment_pk, state, device_id)
) STRICT, WITHOUT ROWID;

-- How many devices of a deployment are in a state; of complete deployments only.
CREATE TABLE deployment_counts (
    deployment_pk INTEGER NOT NULL,
    state         INTEGER NOT NULL,
    devices       INTEGER NOT NULL CHECK (devices >= 0),
    PRIMARY KEY (deployment_pk, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE deployment_attempts (
    device_key    INTEGER NOT NULL,                          -- deployment_devices.key
    attempt       INTEGER NOT NULL,
    state         INTEGER NOT NULL,
    offered_at    INTEGER,
    ended_at      INTEGER NOT NULL,
    reason_code   TEXT    NOT NULL,
    message       TEXT    NOT NULL,
    PRIMARY KEY (device_key, attempt)
) STRICT, WITHOUT ROWID;
