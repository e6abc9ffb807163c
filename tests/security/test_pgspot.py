"""pgspot finds nothing in what is installed: no name in it is looked up where others could have put something.

Not told to pgspot, because it cannot see it:

* Internal functions do not pin the search_path. They are called only by functions that do (test_matrix.py proves that
  nobody else may), and a SET costs a microsecond per call and forbids inlining. So they are shown with one.
* The bodies in PL/pgSQL are not looked into: pglast does not know the fields of a variable of a composite type, and
  gives up. With a pinned search_path there is nothing to find in them; test_hostile_path.py runs them all instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue import __version__
from tests.conftest import PLAIN_SQL, ROOT

EXTENSION = ROOT / f"build/pgqueue--{__version__}.sql"
INTERNAL = re.compile(
    r"^CREATE (?:OR REPLACE )?FUNCTION pgq\._.*?\bLANGUAGE (?:plpgsql|sql)\b(?P<options>.*?)^AS \$",
    re.DOTALL | re.MULTILINE,
)
PINNED = " SET search_path = pg_catalog, pg_temp\n"
# Without a SET it is folded into the query, and it calls nothing.
UNPINNED = ["pgq.version()"]
# A procedure that commits cannot have a SET; tests/sql/test_work.py runs it under shadowing operators.
UNPINNED += [
    "pgq._outside_of_a_transaction_block()",
    "pgq.work(queue text,handler text,batch integer,idle interval,for_time interval,lease_for interval,worker text,"
    "INOUT done bigint,INOUT failed bigint)",
    "pgq.wait(id bigint,timeout interval,INOUT state text,INOUT result jsonb,INOUT error text)",
]


def pinned(match: re.Match[str]) -> str:
    text = match.group()
    return text if "search_path" in match["options"] else text.replace("\nAS $", PINNED + "AS $", 1)


def run_pgspot(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    allowed = [f"--proc-without-search-path={function}" for function in UNPINNED]
    command = [str(Path(sys.executable).with_name("pgspot")), "--no-plpgsql", *allowed, *options]
    return subprocess.run(
        command,
        input=INTERNAL.sub(pinned, script),
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("path", [PLAIN_SQL, EXTENSION], ids=["plain", "extension"])
def test_pgspot_finds_nothing(path: Path) -> None:
    done = run_pgspot(path.read_text())
    assert done.returncode == 0, done.stdout


def test_pgspot_would_find_something() -> None:
    loose = "CREATE FUNCTION pgq.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT 1 + length('x') $$;"
    done = run_pgspot(loose)
    assert done.returncode == 1
    assert "PS003" in done.stdout
