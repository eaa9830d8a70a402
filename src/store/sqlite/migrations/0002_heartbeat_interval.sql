-- How often a device is expected to report; NULL: as the server's configuration says.
ALTER TABLE devices ADD COLUMN heartbeat_interval_ms INTEGER CHECK (heartbeat_interval_ms > 0);
