-- A copy of a database runs none of the original's jobs: they are cancelled here, and the copy gets an identity of its own.
UPDATE sidestream_job
   SET state = 'cancelled', ended_at = now() AT TIME ZONE 'UTC', reason = 'Cancelled in a neutralized copy of the database.'
 WHERE state = 'open';
UPDATE sidestream_meta
   SET database_uuid = gen_random_uuid(),
       home = (SELECT system_identifier || '/' || d.oid FROM pg_control_system(), pg_database d
               WHERE d.datname = current_database());
-- What an adoption left; tables of an earlier release, which nobody upgraded yet, do not have it.
DO $$ BEGIN
    IF EXISTS (SELECT FROM information_schema.columns
               WHERE table_schema = current_schema AND table_name = 'sidestream_meta' AND column_name = 'former')
    THEN EXECUTE $q$UPDATE sidestream_meta SET former = ''$q$;
    END IF;
END $$;
