-- From version 1 to 2, in one transaction; no row is rewritten. What version 1 had "ready for later" nobody ever wrote.
ALTER TABLE sidestream_job
    DROP COLUMN priority,
    DROP COLUMN group_name,
    DROP COLUMN unique_key;
ALTER TABLE sidestream_job
    ADD COLUMN priority smallint NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9),
    ADD COLUMN group_name text COLLATE "C",
    ADD COLUMN limit_key text COLLATE "C",
    ADD COLUMN unique_key text COLLATE "C",
    ADD COLUMN unique_until text COLLATE "C" CHECK (unique_until IN ('started', 'done', 'window')),
    ADD COLUMN unique_seconds double precision,
    ADD COLUMN unique_conflict text COLLATE "C" CHECK (unique_conflict IN ('return', 'replace', 'newest')),
    ADD COLUMN expires_at timestamp,
    ADD COLUMN snoozes integer NOT NULL DEFAULT 0,
    ADD COLUMN started_at timestamp,
    ADD COLUMN error_group text COLLATE "C";
DROP INDEX sidestream_job_due;
CREATE INDEX sidestream_job_due ON sidestream_job (queue, priority, run_at, id) WHERE state = 'open';
CREATE INDEX sidestream_job_unique ON sidestream_job (unique_key, id) WHERE state = 'open' AND unique_key IS NOT NULL;
CREATE INDEX sidestream_job_unique_kept ON sidestream_job (unique_key, id)
    WHERE unique_until = 'window' OR unique_conflict <> 'return';
CREATE INDEX sidestream_job_expires ON sidestream_job (expires_at) WHERE state = 'open' AND expires_at IS NOT NULL;
ALTER TABLE sidestream_meta ADD COLUMN rules_version bigint NOT NULL DEFAULT 0;
CREATE TABLE sidestream_rule (
    id              bigserial PRIMARY KEY,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('limit', 'weight', 'pause', 'ageing')),
    scope           text COLLATE "C" NOT NULL CHECK (scope IN ('global', 'queue', 'action', 'key', 'group')),
    name            text COLLATE "C" NOT NULL DEFAULT '',
    group_name      text COLLATE "C" NOT NULL DEFAULT '',
    concurrency     integer CHECK (concurrency >= 0),
    rate            double precision CHECK (rate >= 0),
    burst           integer CHECK (burst >= 1),
    weight          double precision CHECK (weight > 0),
    seconds         double precision CHECK (seconds >= 0),
    note            text,
    changed_by      text,
    changed_at      timestamp NOT NULL DEFAULT (statement_timestamp() AT TIME ZONE 'UTC'),
    UNIQUE (kind, scope, name, group_name)
);
UPDATE sidestream_meta SET version = 2;
