"""The benchmark: pgq against a bare INSERT and against a conventional queue, in one run on one server.

`make bench` (or `python -m tests.bench`) prints a table and writes build/bench.json.
Competitors take turns (A B, B A, ...) and a ratio is the median of the rounds' ratios, so that a
noisy machine disturbs both alike.  Every run is checked: the jobs that pgbench says it handled must
be missing from the queue afterwards, and a claim that came back short is counted and not measured.

    __main__.py       the command line
    server.py         one throw-away server with stated settings, one database for each row
    pgbench.py        runs pgbench and reads what it prints and logs
    systems.py        the competitors behind one face: load, count, run
    compare.py        rounds, turns, medians
    background.py     what goes on beside: maintenance, a pinned snapshot, waiting workers
    rows/             what is measured, one file a subject
    report.py         the table and the JSON
    conventional.sql  the conventional queue
    scripts/          what pgbench runs; unqualified names, so that one text drives either queue
"""
