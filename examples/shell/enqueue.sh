#!/bin/sh
# Enqueues a job for each line of standard input, all in one transaction; the payload is the line, as a JSON string.
#
#   enqueue.sh QUEUE < LINES
set -eu

psql -XAtq -v ON_ERROR_STOP=1 -v queue="$1" -v lines="$(cat)" -d "$PGQUEUE_DSN" <<'END'
SELECT 'job ' || pgq.enqueue(:'queue', to_jsonb(line)) FROM regexp_split_to_table(:'lines', '\n') line WHERE line <> '';
END
