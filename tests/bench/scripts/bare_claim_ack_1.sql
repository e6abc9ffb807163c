\set lane random(1, 8)
\set job random(1, 1000000000)
INSERT INTO bare.lease (lane, claimed_at, expires_at, cursor_xid, cursor_id, taken, job_ids)
VALUES (:lane, clock_timestamp(), clock_timestamp(), pg_current_xact_id(), :job, 1, ARRAY[:job]::bigint[]) RETURNING id AS lease \gset
INSERT INTO bare.outcome (job_id, lease_id, at, kind) VALUES (:job, :lease, clock_timestamp(), 'done');
