"""The gate: an upgraded installation must be what a fresh one is, and go on where it was.

It takes any way from one version to another, in either form: the plain script, and the extension.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psycopg
from psycopg import sql

from tests.build.catalog import Catalog, Connection, contents, differences, membership, objects
from tests.cluster import Cluster
from tests.conftest import fresh_database
from tests.programs import run
from tests.upgrade.tree import Tree, Upgrade, Version

# Partitions of the archive are made at run time, and are no part of an installation.
_PARTITION = re.compile(r"archive_\d{8}_\d{8}")


@dataclass(frozen=True)
class Form:
    """One of the two ways to install pgq, on a server where that is possible.

    Args:
        name: plain or extension.
        server: for the extension one whose files may be changed.
    """

    name: str
    server: Cluster

    @property
    def _folder(self) -> Path:
        (control,) = (self.server.bin.parent / "share").glob("**/extension/plpgsql.control")
        return control.parent

    @contextmanager
    def database(self, version: Version | None = None) -> Iterator[str]:
        """A fresh database, with a version installed."""
        with contextmanager(fresh_database)(self.server, _template(self, version) if version else None) as dsn:
            yield dsn

    def install(self, db: Connection, version: Version) -> None:
        if self.name == "plain":
            db.execute(version.plain.read_bytes())
        else:
            shutil.copy(version.extension, self._folder)
            db.execute(sql.SQL("CREATE EXTENSION pgqueue VERSION {}").format(version.number))

    def provide(self, upgrade: Upgrade) -> None:
        """Put the files onto the server that `make install` puts there."""
        if self.name == "extension":
            for path in (*upgrade.extension, upgrade.new.extension):
                shutil.copy(path, self._folder)

    def apply(self, db: Connection, upgrade: Upgrade, change: Callable[[str], str] = str) -> None:
        """Upgrade within the transaction of the caller, with changed scripts."""
        if self.name == "plain":
            for path in upgrade.plain:
                db.execute(change(path.read_text()).encode())
        else:
            for path in upgrade.extension:
                (self._folder / path.name).write_text(change(path.read_text()))
            db.execute(sql.SQL("ALTER EXTENSION pgqueue UPDATE TO {}").format(upgrade.new.number))


@cache
def _template(form: Form, version: Version) -> str:
    """Name of a database with a version, to be cloned."""
    name = f"{form.name} {version.number} of {version.plain.parent}"[-60:]
    with psycopg.connect(form.server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with psycopg.connect(form.server.dsn(name), autocommit=True) as db:
        form.install(db, version)
    return name


def pgqueue(tree: Tree, dsn: str, *arguments: str, fails: bool = False) -> str:
    """Run the command `pgqueue` of a source tree's package; returns what it printed."""
    code = "from pgqueue.cli import main; main(prog_name='pgqueue')"
    return run(sys.executable, "-c", code, *arguments, "--dsn", dsn, fails=fails, PYTHONPATH=str(tree.package))


def describe(db: Connection, *, pristine: bool = True, but_for: Collection[str] = ()) -> Catalog:
    """All that makes an installation, and if it is pristine, what it contains; but for the rights of these roles."""
    found: Catalog = {}
    for part in (objects(db), membership(db), contents(db) if pristine else {}):
        for name, properties in part.items():
            if not _PARTITION.search(name):
                found.setdefault(name, {}).update(properties)
    for properties in found.values():
        if "acl" in properties:
            properties["acl"] = [item for item in properties["acl"] if item.partition("=")[0] not in but_for]
    return found


def without_contents(expected: Catalog) -> Catalog:
    """What is expected of an installation that is in use."""
    return {name: {k: v for k, v in what.items() if k != "contents"} for name, what in expected.items()}


def unequal_partitions(db: Connection) -> list[str]:
    """Where partitions of the archive differ from one another in more than their time."""
    found: dict[str, Catalog] = {}
    for name, properties in objects(db).items():
        if match := _PARTITION.search(name):
            kind = _PARTITION.sub("archive_…", name)
            told = {key: re.sub(r"\d{4}-?\d\d-?\d\d", "…", str(value)) for key, value in properties.items()}
            found.setdefault(match[0], {})[kind] = told
    first, *others = found.values()
    return [line for other in others for line in differences(other, first)]


RIGHTS = """
    SELECT DISTINCT a.grantee::regrole::text, p.oid::regprocedure::text
    FROM pg_proc p, aclexplode(p.proacl) a WHERE p.pronamespace = 'pgq'::regnamespace AND a.grantee <> p.proowner
    UNION ALL
    SELECT a.grantee::regrole::text, c.oid::regclass::text
    FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'pgq'::regnamespace AND a.grantee <> c.relowner
"""


def rights(db: Connection) -> set[tuple[str, str]]:
    """Who but the owner may use what."""
    return set(db.execute(RIGHTS).fetchall())
