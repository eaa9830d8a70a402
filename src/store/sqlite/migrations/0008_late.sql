-- Whether a device was last known to be late: after a start it still is, so that how many devices were online at a time
-- follows from what was told.
ALTER TABLE devices ADD COLUMN is_late INTEGER NOT NULL DEFAULT 0 CHECK (is_late IN (0, 1));
