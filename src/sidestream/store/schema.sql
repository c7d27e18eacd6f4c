-- Sidestream's tables, version 1. Run by sidestream.store.schema.install, inside the caller's transaction.
-- Times are "timestamp" in UTC, because Odoo's Datetime columns are. Numbers and reasons: docs/decisions/0002-store-table.md.

CREATE TABLE sidestream_job (
    id              bigserial PRIMARY KEY,
    -- Unchangeable after the INSERT: references are built from these.
    uuid            uuid,                   -- of a direct job whose effect, or failure, was written here (its inbox)
    -- "C": they are compared for equality alone, as bytes, whatever language the database speaks.
    action          text COLLATE "C" NOT NULL,
    queue           text COLLATE "C" NOT NULL,
    key             text COLLATE "C",       -- jobs with the same key run one at a time, in the order of their ids
    payload         text NOT NULL,          -- JSON {"v": 1, "args": [], "kwargs": {}}
    created_at      timestamp NOT NULL DEFAULT (statement_timestamp() AT TIME ZONE 'UTC'),
    -- Changing.
    state           text COLLATE "C" NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed', 'cancelled')),
    run_at          timestamp NOT NULL DEFAULT (statement_timestamp() AT TIME ZONE 'UTC'),
    -- Beside ended_at, so that the WAL of "done" leaves out the unchanged rest behind both.
    started_at      timestamp,              -- when the transaction that said "done" began
    ended_at        timestamp,
    attempts        integer NOT NULL DEFAULT 0,     -- starts that failed or crashed; only ever grows: the mark of every compare-and-set
    forgiven        integer NOT NULL DEFAULT 0,     -- how many of them a person's retry wrote off
    crashes         integer NOT NULL DEFAULT 0,     -- how many killed their process, since the last person's retry
    suspects        integer NOT NULL DEFAULT 0,     -- deaths of its host for which it may or may not be to blame, at most 2: run it alone then; -1: it was, and was charged: likewise
    releases        integer NOT NULL DEFAULT 0,     -- times it was released since it was last started
    released_since  timestamp,                      -- when the first of them was counted
    error           text,                   -- of the last failure, for people
    reason          text,                   -- why it was last released or cancelled: a code, or code|{parameters} (job/reason.py)
    company_id      integer,
    user_id         integer,                -- the user that it runs as
    context         text,
    priority        smallint NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9),  -- 0 first
    group_name      text COLLATE "C",       -- unchangeable: the tenant
    limit_key       text COLLATE "C",       -- unchangeable: what it counts against
    unique_key      text COLLATE "C",       -- jobs with the same one are duplicates of each other
    unique_until    text COLLATE "C" CHECK (unique_until IN ('started', 'done', 'window')),
    unique_seconds  double precision,       -- the window's length
    unique_conflict text COLLATE "C" CHECK (unique_conflict IN ('return', 'replace', 'newest')),
    expires_at      timestamp,              -- cancelled when it was not started by then
    snoozes         integer NOT NULL DEFAULT 0,     -- times that it snoozed itself, since the last person's retry
    error_group     text COLLATE "C",       -- what failed rows with the like error share (job/errorgroup.py)
    requested_by    integer                 -- who asked for it, where that is not the user that it runs as
);

-- "Done" takes the row out of every index with a condition. It writes to the primary key and to sidestream_job_action.
-- Pending rows by id: the reconciler's chunks.
CREATE INDEX sidestream_job_pending ON sidestream_job (id) WHERE state = 'pending';
-- Due rows by queue: workers without Redis, counts, pages.
CREATE INDEX sidestream_job_due ON sidestream_job (queue, priority, run_at, id) WHERE state = 'pending';
-- Earlier jobs with the same key: acquire.
CREATE INDEX sidestream_job_key ON sidestream_job (key, id) WHERE state = 'pending' AND key IS NOT NULL;
-- Lists of failed and cancelled jobs.
CREATE INDEX sidestream_job_ended ON sidestream_job (state, id) WHERE state IN ('failed', 'cancelled');
-- Searches among all jobs, including done ones. Actions have few values, so their entries are shared (179 B of WAL a job).
-- BRIN keeps users and times for blocks of rows, so a job hardly ever writes to it. Few jobs have failed attempts.
CREATE INDEX sidestream_job_action ON sidestream_job (action);
CREATE INDEX sidestream_job_search ON sidestream_job
    USING brin (user_id int4_bloom_ops, created_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX sidestream_job_requested_by ON sidestream_job (requested_by, id) WHERE requested_by IS NOT NULL;
CREATE INDEX sidestream_job_troubled ON sidestream_job (id) WHERE attempts > 0;
-- Pending duplicates. It contains only jobs with a unique key.
CREATE INDEX sidestream_job_unique ON sidestream_job (unique_key, id) WHERE state = 'pending' AND unique_key IS NOT NULL;
-- Jobs that count as duplicates after their end: within their window, or because they replaced an earlier job.
CREATE INDEX sidestream_job_unique_kept ON sidestream_job (unique_key, id)
    WHERE unique_until = 'window' OR unique_conflict <> 'return';
-- The next job to expire. It contains only jobs that can expire.
CREATE INDEX sidestream_job_expires ON sidestream_job (expires_at) WHERE state = 'pending' AND expires_at IS NOT NULL;
-- The inbox of direct jobs: whether a job's effect is already committed.
CREATE UNIQUE INDEX sidestream_job_uuid ON sidestream_job (uuid) WHERE uuid IS NOT NULL;

-- Insert-only: what happened to a job beyond "it was done". No foreign key: it would write a lock into the job's row.
CREATE TABLE sidestream_attempt (
    id              bigserial PRIMARY KEY,
    job_id          bigint NOT NULL,
    worker      text COLLATE "C" NOT NULL,
    slot            smallint NOT NULL,      -- which child; -1 when none is meant
    event           text NOT NULL CHECK (event IN ('started', 'failed', 'crashed', 'released', 'done', 'timeout', 'cancelled')),
    at              timestamp NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    detail          text
);
CREATE INDEX sidestream_attempt_job ON sidestream_attempt (job_id, id);
CREATE INDEX sidestream_attempt_started ON sidestream_attempt (worker, id) WHERE event = 'started';

-- Which records a job is about: insert-only, so that a record's jobs are found at once and "done" writes no index of it.
CREATE TABLE sidestream_job_record (
    model           text COLLATE "C" NOT NULL,
    record_id       integer NOT NULL,
    job_id          bigint NOT NULL,
    PRIMARY KEY (model, record_id, job_id)
);
CREATE INDEX sidestream_job_record_job ON sidestream_job_record (job_id);

-- What a person asked of a job whose row was locked. Insert-only but for the mark that it was handled.
CREATE TABLE sidestream_control (
    id              bigserial PRIMARY KEY,
    job_id          bigint NOT NULL,
    request         text NOT NULL CHECK (request IN ('cancel')),
    asked_at        timestamp NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    handled_at      timestamp
);
CREATE INDEX sidestream_control_pending ON sidestream_control (job_id) WHERE handled_at IS NULL;
CREATE INDEX sidestream_control_job ON sidestream_control (job_id);

-- The workers that live, and the dead ones whose jobs are not charged yet (store/deaths.py).
CREATE TABLE sidestream_worker (
    name            text COLLATE "C" PRIMARY KEY,   -- each start of a worker has another one
    started_at      timestamp NOT NULL DEFAULT (statement_timestamp() AT TIME ZONE 'UTC')
);

-- During a rolling deployment, processes of two releases use these tables. So a later version only adds columns that are
-- nullable or have a default, and a release leaves out of its statements what tables of a version that it accepts lack.
CREATE TABLE sidestream_meta (
    single          boolean PRIMARY KEY DEFAULT true CHECK (single),
    version         integer NOT NULL,
    usable_from     integer NOT NULL DEFAULT 1,     -- the oldest version whose releases can use these tables
    database_uuid   uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Cluster and database that the uuid was made in: a copy or a restored dump is elsewhere, and runs nothing until told.
    home            text NOT NULL,
    -- The operator's name for this installation (SIDESTREAM_INSTANCE). It tells a physical copy, whose home is the same, from
    -- the original, and the original from a copy after pg_upgrade has changed its home.
    instance        text,
    installed_at    timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    rules_version   bigint NOT NULL DEFAULT 0,      -- of sidestream_rule; grows in the transaction of every change
    -- "uuid:id uuid:id": what its uuid was before it was adopted, and the last job of that time, whose keys stay the same.
    former          text NOT NULL DEFAULT ''
);

-- The truth about pauses, limits, weights and aging (job/rules.py). "" where a rule names none.
CREATE TABLE sidestream_rule (
    id              bigserial PRIMARY KEY,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('limit', 'weight', 'pause', 'aging')),
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

-- Each job leaves one dead version behind: clean up by the tens of thousands, at full speed, and keep the statistics of
-- "how many are pending" fresh, because the planner chooses between the indexes by them.
ALTER TABLE sidestream_job SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 2000
);
ALTER TABLE sidestream_control SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
