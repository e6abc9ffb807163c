"""The commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner

from pgqueue import Client, __version__, cli

ROOT = Path(__file__).parents[2]


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


def test_every_command_and_option_has_help() -> None:
    names = [command.name for command in commands(cli.main)]
    assert {"enqueue", "redrive", "next-runs", "top"} < set(names)
    for command in (*commands(cli.main), cli.worker):
        assert command.help, command.name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, f"{command.name} {parameter.name}"


def test_a_queue_from_the_first_command_to_the_last(run: Any, dsn: str) -> None:
    assert run("create-queue", "mail", "--lease", "30 seconds", "--max-attempts", "3", "--shards", "1").exit_code == 0
    again = run("create-queue", "mail")
    assert again.exit_code == 1
    assert "HINT" in again.output
    assert run("create-queue", "mail", "--if-not-exists").exit_code == 0
    first = int(run("enqueue", "mail", '{"to": "ann"}', "--task", "send", "--headers", '{"a": 1}').output)
    second = int(run("enqueue", "mail", "-", "--priority", "-5", stdin="[1]").output)
    (stat,) = json.loads(run("stats", "--json").output)
    assert (stat["queue"], stat["ready"], stat["paused"]) == ("mail", 2, False)
    assert "mail" in run("stats").output
    shown = json.loads(run("show", str(first), "--json").output)
    assert (shown["id"], shown["task"], shown["state"]) == (first, "send", "ready")
    assert "ready" in run("show", str(second)).output
    assert run("show", "999").exit_code == 1
    assert isinstance(json.loads(run("maintain").output), dict)
    assert isinstance(json.loads(run("doctor", "--json").output), list)
    run("doctor")
    with Client(dsn) as client:
        assert [job.id for job in client.claim("mail", 2)] == [second, first]
    assert run("drop-queue", "mail").exit_code == 1
    assert run("drop-queue", "mail", "--force").exit_code == 0
    assert run("enqueue", "mail").exit_code == 1


@pytest.mark.parametrize("arguments", [["{to: ann}"], [""], ["{}", "--headers", ""]])
def test_bad_json_is_explained(run: Any, client: Client, arguments: list[str]) -> None:
    result = run("enqueue", "q", *arguments)
    assert result.exit_code == 1
    assert "JSON" in result.output
    assert client.stats()[0].ready == 0


def test_install_is_refused_twice_and_over_something_else(run: Any, bare_dsn: str) -> None:
    assert run("install", dsn=bare_dsn).output == f"pgq {__version__} installed\n"
    again = run("install", dsn=bare_dsn)
    assert again.exit_code == 1
    assert "already" in again.output
    with psycopg.connect(bare_dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA pgq CASCADE; CREATE SCHEMA pgq; CREATE TABLE pgq.tick ()")
        foreign = run("install", dsn=bare_dsn)
        assert foreign.exit_code == 1
        assert "pgq" in foreign.output
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'pgq'").fetchone() == (1,)


def test_commands_say_that_pgq_is_missing(run: Any, bare_dsn: str) -> None:
    for command in ("stats", "version", "upgrade", "queues", "top", "workers", "wait 1", "schedule list"):
        result = run(*command.split(), dsn=bare_dsn)
        assert result.exit_code == 1
        assert "pgqueue install" in result.output


@pytest.mark.parametrize("command", [["stats"], ["top"], ["wait", "1"]])
def test_a_server_that_is_away_is_explained(run: Any, command: list[str]) -> None:
    result = run(*command, dsn="host=/nonexistent")
    assert result.exit_code == 1
    assert "/nonexistent" in result.output


def test_upgrade_has_nothing_to_do(run: Any) -> None:
    assert run("upgrade").output == f"pgq {__version__} is up to date\n"


def test_version(run: Any) -> None:
    assert run("version").output == f"pgq {__version__} in the database, package {__version__}\n"


def test_the_worker_command_drains(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(dsn) as client:
        client.create_queue("q")
        job = client.enqueue("q", {"x": 1, "y": 2}, task="add")
        result = CliRunner().invoke(cli.worker, ["tests.python.handlers:app", "--dsn", dsn, "--drain"])
        assert result.exit_code == 0, result.output
        state = client.job_status(job)
        assert state is not None
        assert state.result == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere:app", "no module"), ("json:app", "no pgqueue.App"), ("tests.python.handlers:x", "'x'")],
)
def test_the_worker_command_explains_what_it_cannot_load(path: str, message: str) -> None:
    result = CliRunner().invoke(cli.worker, [path])
    assert result.exit_code == 1
    assert message in result.output


def test_the_worker_command_explains_an_unknown_queue(dsn: str) -> None:
    result = CliRunner().invoke(cli.worker, ["tests.python.handlers:app", "--dsn", dsn, "-q", "nowhere"])
    assert result.exit_code == 1
    assert "nowhere" in result.output


@pytest.mark.parametrize(("module", "heavy"), [("pgqueue", ["psycopg", "click"]), ("pgqueue.cli", ["psycopg", "rich"])])
def test_import_loads_nothing_heavy(module: str, heavy: list[str]) -> None:
    loaded = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_help_lists_each_command_in_its_section() -> None:
    help = CliRunner().invoke(cli.main, ["--help"]).output
    for name, command in cli.main.commands.items():
        assert f"  {name} " in help
        assert " ".join(str(command.help).split()[:2]) in help
    assert help.index("Queues:") < help.index("create-queue") < help.index("Jobs:") < help.index("  enqueue ")


def test_every_command_is_in_the_documentation() -> None:
    section = (ROOT / "docs/features.md").read_text().partition("## The command line")[2]
    for name, command in cli.main.commands.items():
        for sub in command.commands if isinstance(command, click.Group) else [""]:
            assert f"`{name} {sub}".rstrip() in section, f"{name} {sub}"


@pytest.mark.parametrize("name", ["it's", "a\nb\x1b[2J", " ", "NULL", "[bold]x[/]", "-x", "ü☃🎉", "x" * 128])
def test_a_queue_may_have_any_name(run: Any, name: str) -> None:
    settings = (["alter-queue", "--max-attempts", "7"], ["set-limits", "--fair"], ["set-unique", "--on-repeat", "keep"])
    for arguments in (["create-queue"], *settings, ["pause"], ["resume"], ["enqueue"]):
        result = run(*arguments, "--", name)
        assert result.exit_code == 0, result.output
    assert len(json.loads(run("jobs", "--json", "--", name).output)) == 1
    assert "ready" in run("jobs", "--", name).output
    for command in ("queues", "stats", "top"):
        printed = run(command).output
        assert (command, "\x1b" in printed, name[:1] in printed) == (command, False, True)
        facts = json.loads(run(command, "--json").output)
        assert [row["queue"] for row in (facts["queues"] if command == "top" else facts)] == [name]
    assert run("drop-queue", "--force", "--", name).exit_code == 0


def test_all_names_can_be_imported() -> None:
    import pgqueue

    for name in pgqueue.__all__:
        assert getattr(pgqueue, name) is not None
    with pytest.raises(AttributeError):
        pgqueue.nothing  # noqa: B018
