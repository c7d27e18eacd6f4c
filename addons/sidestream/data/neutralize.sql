-- A neutralized copy must not run the original's jobs: cancel them, and give the copy its own identity.
UPDATE sidestream_job
   SET state = 'cancelled', ended_at = now() AT TIME ZONE 'UTC', reason = 'neutralized'
 WHERE state = 'pending';
UPDATE sidestream_meta
   SET database_uuid = gen_random_uuid(),
       instance = NULL, former = '',
       home = (SELECT system_identifier || '/' || d.oid FROM pg_control_system(), pg_database d
               WHERE d.datname = current_database());
