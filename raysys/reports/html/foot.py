"""The foot of a page: settings, builds and their lineage, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.config import flat
from raysys.reports.html.content import Table
from raysys.reports.html.text import value


def settings(caption: str, tree: Mapping[str, Any]) -> Table:
    """Return settings, nested or not, as a table of dotted keys."""
    rows = [[key, value(entry)] for key, entry in sorted(flat(tree).items())]
    return Table(caption, ["key", "value"], rows, left=(0, 1))


def versions(by_build: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return {build: {package: version}} as a table; a version that all share stands once."""
    names = sorted({name for found in by_build.values() for name in found})
    rows = []
    for name in names:
        seen: dict[str, list[str]] = {}
        for build, found in by_build.items():
            seen.setdefault(str(found.get(name, "–")), []).append(build)
        several = len(seen) > 1
        rows += [
            [name, version, ", ".join(builds) if several else "all builds"]
            for version, builds in seen.items()
        ]
    return Table(
        "Versions that made the builds", ["package", "version", "of"], rows, left=(0, 1, 2)
    )
