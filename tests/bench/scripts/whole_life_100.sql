SELECT count(*) AS n FROM enqueue_many(:queue, :payloads) \gset
SELECT count(*) AS n, array_agg(id) AS ids, array_agg(lease) AS leases FROM claim(:queue, 100) \gset
\if :n > 0
SELECT count(*) AS acked FROM ack_many(:ids, :leases) \gset
\if :acked <> :n
SELECT 'an ack was lost'::int;
\endif
\endif
\if :n < 100
INSERT INTO bench.short (missing) VALUES (100 - :n);
\endif
