SELECT count(*) AS n, coalesce(min(id), 0) AS id, coalesce(min(lease), 0) AS lease FROM claim(:queue, 1) \gset
\if :n = 1
SELECT ack(:id, :lease);
\else
INSERT INTO bench.short (missing) VALUES (1);
\endif
