#!/bin/sh
# A worker without anything but psql: runs a command for each job of a queue.
#
#   worker.sh QUEUE COMMAND [ARGUMENT…]
#
# The command gets the payload, as JSON, on standard input. If it exits with 0 the job is done, and what it has written
# is the result; else the attempt has failed, with what it wrote to standard error. SIGTERM lets the running job finish.
#
# PGQUEUE_DSN names the database. With DRAIN=1 it ends when no job is ready. BEAT is how many seconds lie between two
# extensions of a lease, 20 if not set: less than half of the queue's lease.
set -eu

queue=$1
shift
errors=$(mktemp)
stopping=
trap 'rm -f "$errors"' EXIT
trap 'stopping=1' TERM INT

# sql [-v NAME=VALUE]… < STATEMENTS: values arrive as :'NAME', quoted, whatever is in them.
sql() {
    psql -XAtq -F ' ' -v ON_ERROR_STOP=1 -v queue="$queue" "$@" -d "$PGQUEUE_DSN"
}

run() (
    # The lease, of a minute as a rule, is extended for as long as the command runs.
    while sleep "${BEAT-20}"; do
        sql -v lease="$lease" <<'END'
SELECT pgq.extend(:'lease');
END
    done >/dev/null 2>&1 &
    trap "kill $! 2>/dev/null" EXIT
    printf '%s\n' "$payload" | "$@" 2>"$errors"
)

while [ -z "$stopping" ]; do
    # Jobs whose time has come, and those of workers that died, become ready; then one is claimed.
    claimed=$(sql -v worker="$(uname -n):$$" <<'END'
SELECT pgq.maintain() \g /dev/null
SELECT id, lease, payload FROM pgq.claim(:'queue', worker => :'worker');
END
    )
    if [ -z "$claimed" ]; then
        [ -z "${DRAIN-}" ] || break
        sleep 1
        continue
    fi
    id=${claimed%% *} rest=${claimed#* }
    lease=${rest%% *} payload=${rest#* }

    if result=$(run "$@"); then
        outcome="SELECT 'done' FROM pgq.ack(:'id', :'lease', to_jsonb(:'text'::text));"
        text=$result
    else
        outcome="SELECT pgq.reject(:'id', :'lease', :'text');"
        text=$(tail -c 10000 "$errors")
    fi
    # It fails if the lease has expired, and another worker has the job.
    said=$(printf '%s\n' "$outcome" | sql -v id="$id" -v lease="$lease" -v text="$text") || said='lost'
    echo "job $id: $said"
done
