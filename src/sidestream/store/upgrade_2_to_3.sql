-- From version 2 to 3, in one transaction; no row is rewritten.
ALTER TABLE sidestream_job ADD COLUMN requested_by integer;
ALTER TABLE sidestream_meta ADD COLUMN former text NOT NULL DEFAULT '';
UPDATE sidestream_meta SET version = 3;
