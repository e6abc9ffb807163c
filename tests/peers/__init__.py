"""The field: pgqueue and the queues that a user would pick instead, each through its public API, in one run.

`make bench-peers` (or `python -m tests.peers`) installs each system from its packages into build/peers/<name>, lets all
of them take turns on one server with durable commits, and writes every raw figure to build/peers.json.
`python -m tests.peers --report` makes docs/benchmarks.md and its pictures from docs/benchmarks.json alone.

A new peer is a small file in systems/ with what the harness must know of it, and beside it the program that runs in the
peer's own environment: its worker with a handler that does nothing, and its calls that enqueue one job and many.

    __main__.py      the command line
    server.py        one throw-away server; a database for each turn, copied from a template of its system
    environment.py   a venv or node_modules of its own for each peer, with pinned versions
    system.py        the four verbs: prepare, enqueue, work, count
    systems/         the systems, and their programs
    kit.py, kit.mjs  what these programs share: payloads, ways to enqueue, and the tally of what has run
    program.py       a running program: what it reports, its CPU time, its end
    plan.py          how long and how much
    turns.py         rounds in which everybody has a turn, and what one turn has found
    usage.py         WAL, commits, CPU, dead rows and bytes
    workloads/       what is measured, one file a subject
    figures.py       the figures there are, which way they are better, and what is wanted of them
    results.py       medians and ratios of the raw figures
    remarks.py       why a peer wins, where it does
    report.py        the page
    plots.py         the pictures
"""
