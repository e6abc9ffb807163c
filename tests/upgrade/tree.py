"""Source trees: what each can build, which versions it has released, and what leads from one to the next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.programs import make


@dataclass(frozen=True)
class Version:
    """A version that can be installed."""

    number: str
    plain: Path
    extension: Path


@dataclass(frozen=True)
class Upgrade:
    """The way from a released version to the one of the sources."""

    old: Version
    new: Version
    plain: tuple[Path, ...]
    extension: tuple[Path, ...]


@dataclass(frozen=True)
class Tree:
    """A source tree that has been built."""

    root: Path

    @property
    def package(self) -> Path:
        """The directory to import its Python package from."""
        return self.root / "python/src"

    @property
    def current(self) -> Version:
        """What is built."""
        number = re.search(r"^default_version = '(.+)'", (self.root / "pgqueue.control").read_text(), re.MULTILINE)
        assert number
        build = self.root / "build"
        return Version(number[1], self.package / "pgqueue/sql/pgqueue.sql", build / f"pgqueue--{number[1]}.sql")

    @property
    def released(self) -> list[Version]:
        """The released versions, oldest first."""
        found = (self.root / "sql/upgrade/release").glob("*")
        return [
            Version(path.name, path / "pgqueue.sql", path / f"pgqueue--{path.name}.sql")
            for path in sorted(found, key=lambda path: [int(n) for n in path.name.split(".")])
        ]

    def upgrade(self, old: str) -> Upgrade:
        """The way from a released version to the current one."""
        versions = [*self.released, self.current]
        numbers = [version.number for version in versions]
        steps = numbers[numbers.index(old) :]
        names = [f"pgqueue--{a}--{b}.sql" for a, b in pairwise(steps) if a != b]
        return Upgrade(
            versions[numbers.index(old)],
            self.current,
            tuple(self.package / "pgqueue/sql/upgrade" / name for name in names),
            tuple(self.root / "build" / name for name in names),
        )

    def make(self, *arguments: str, fails: bool = False) -> str:
        return make(*arguments, cwd=self.root, fails=fails)
