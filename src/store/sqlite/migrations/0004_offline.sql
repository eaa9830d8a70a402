-- Whether a device was last known to be gone: after a start it is still, and nobody is told again.
ALTER TABLE devices ADD COLUMN is_offline INTEGER NOT NULL DEFAULT 0 CHECK (is_offline IN (0, 1));
