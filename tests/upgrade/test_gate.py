"""An upgraded installation is what a fresh one is."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from tests.build.catalog import Catalog, Connection, differences
from tests.security.shadows import OVERLOADS, SHADOWS
from tests.upgrade.gate import Form, describe, pgqueue
from tests.upgrade.tree import Tree, Upgrade, Version

Fresh = Callable[[Form, Version], Catalog]


def test_an_unused_installation_becomes_a_fresh_one(
    form: Form, tree: Tree, upgrade: Upgrade, old_dsn: str, old_db: Connection, fresh: Fresh
) -> None:
    form.provide(upgrade)
    said = pgqueue(tree, old_dsn, "upgrade")
    assert f"pgq {upgrade.old.number} is now {upgrade.new.number}" in said
    assert differences(describe(old_db), fresh(form, upgrade.new)) == []


def test_what_lies_in_the_search_path_of_who_upgrades_is_not_used(
    form: Form, upgrade: Upgrade, old_dsn: str, old_db: Connection, fresh: Fresh
) -> None:
    form.provide(upgrade)
    old_db.execute("CREATE SCHEMA evil")
    old_db.execute(SHADOWS)
    old_db.execute(OVERLOADS)
    with psycopg.connect(old_dsn, options="-c search_path=evil") as session:
        form.apply(session, upgrade)
    found = {name: what for name, what in describe(old_db).items() if "evil" not in name}
    assert differences(found, fresh(form, upgrade.new)) == []
