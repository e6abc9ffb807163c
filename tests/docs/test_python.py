"""What docs/python.md shows works as shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

PAGE = (Path(__file__).parents[2] / "docs/python.md").read_text()


def test_the_examples_run_in_their_order(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one module, as which a type checker finds nothing wrong with them."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    script = tmp_path / "shop.py"
    script.write_text("\n\n".join(blocks))
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    with psycopg.connect(dsn) as db:
        db.execute("SELECT pgq.create_queue('mail')")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "for None" in done.stdout
    with psycopg.connect(dsn) as db:
        found = db.execute("SELECT task, payload, headers FROM pgq.scheduled").fetchall()
        assert found == [("mail.send", {"to": "ann@example.org", "subject": "later"}, {"tenant": 7})]
        assert db.execute("SELECT * FROM orders").fetchall() == [("bob@example.org",)]


def test_every_option_of_the_worker_exists() -> None:
    from pgqueue.cli import worker

    known = {name for parameter in worker.params for name in parameter.opts + parameter.secondary_opts}
    for line in re.findall(r"^pgq-worker (.*?)(?:#.*)?$", PAGE, re.MULTILINE):
        for option in re.findall(r"(?<!\S)--[a-z-]+", re.sub(r"'[^']*'", "", line)):
            assert option in known, option
