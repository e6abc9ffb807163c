"""What the README shows works as shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.cluster import Cluster

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    """Return the fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_sql_runs_line_by_line(cluster: Cluster, dsn: str, tmp_path: Path) -> None:
    (script,) = snippets("sql")
    with psycopg.connect(dsn) as db:
        db.execute("CREATE TABLE orders (customer text)")
    file = tmp_path / "readme.sql"
    file.write_text(script)
    command = [str(cluster.program("psql")), "-X", "-v", "ON_ERROR_STOP=1", "-f", "-", dsn]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'done  | {"sent": true}' in done.stdout


def test_the_python_enqueues_and_the_worker_runs_it(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script,) = snippets("python")
    (tmp_path / "shop.py").write_text(script)
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    with psycopg.connect(dsn) as db:
        db.execute("SELECT pgq.create_queue('mail')")
    subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, check=True)
    worker = [str(Path(sys.executable).with_name("pgq-worker")), "shop:app", "--queue", "mail", "--drain"]
    subprocess.run(worker, cwd=tmp_path, check=True)
    with psycopg.connect(dsn) as db:
        assert db.execute("SELECT state, result FROM pgq.job_status(1)").fetchone() == ("done", {"sent": True})


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(snippets("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
