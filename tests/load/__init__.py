"""The load test: an hour of steady load on one server, sampled all the while, and every job accounted for at the end.

`make load` (or `python -m tests.load`) offers jobs at a fixed rate, whether the server keeps up or not: what is late
is measured and not hidden.  Most sessions are idle workers that listen, some produce, some consume, some maintain; a
snapshot is pinned in the middle; then come the many queues.  It writes build/load.jsonl (one line per sample) and
build/load.json (the summary).  `python -m tests.load --report` draws docs/images/load-*.svg from them.

    __main__.py   the command line
    plan.py       how much of what, and how it is split over sessions
    server.py     one throw-away server with durable settings
    database.py   what is read from the tables of pgq: one statement a function
    crew.py       client processes, each with some threads, and what they report
    record.py     counts and durations on their way to the sampler
    produce.py    the open loop that enqueues
    consume.py    claim and ack; the consumers of many queues
    keep.py       maintenance, the wake-up probe, the pinned snapshot
    idle.py       the crowd of idle workers
    sample.py     one line of figures about clients, database and processes
    phases.py     the run from warm-up to the last check
    tally.py      how often each id was seen, a byte each
    check.py      every id enqueued was done exactly once
    metrics.py    which figures there are, and which must stay flat
    report.py     the summary, its table and its JSON
    plots.py      the pictures
"""
