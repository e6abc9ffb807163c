SELECT count(*) AS n FROM claim(:queue, 1) \gset
\if :n < 1
INSERT INTO bench.short (missing) VALUES (1);
\endif
