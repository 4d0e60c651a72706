"""The kinds of builds: their versions, the commands that write them, and the form of their facts.

One table names every kind. A kind's owner, in the room of the thing, knows the rest: the names of
its files, and its facts as a frozen dataclass below `Facts`.

The version is of a kind's files and facts together. It is part of every `build_id`, so a new
version is a new build, and it stands in the manifest, so a reader refuses what it cannot read. One
that reads earlier versions too lists them in `reads`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar, Protocol, Self

from raysys.errors import CorruptBuildError, SchemaVersionError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of build.

    Attributes:
        name: its folder in a run.
        writer: the command that writes it.
        version: of what that command writes now.
        reads: versions that are read.
    """

    name: str
    writer: str
    version: int = 4
    reads: tuple[int, ...] = (4,)

    def check(self, version: object, where: str) -> None:
        """Raise SchemaVersionError where a build is of a version that is not read.

        Args:
            version: that its manifest names.
            where: path of the manifest, for the message.
        """
        if version not in self.reads:
            raise SchemaVersionError(
                f"{where} has schema version {version!r}, this raysys reads "
                f"{' or '.join(map(str, self.reads))}: run its stages again, from {self.writer} on "
                "(from prepare on where the builds it was made from are as old)"
            )


# In the order in which they are made from one another.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("interactions", writer="prepare"),
        Kind("profiles", writer="prepare"),
        Kind("baselines", writer="evaluate", version=5, reads=(5,)),
        Kind("autoencoder", writer="train", version=6, reads=(6,)),
        Kind("embeddings", writer="train"),
        Kind("changes", writer="update", version=5, reads=(4, 5)),
        Kind("compressor", writer="train"),
        Kind("codes", writer="train"),
        Kind("index", writer="index", version=8, reads=(5, 6, 7, 8)),
    )
}


class Recorded(Protocol):
    """What facts are read from: a `Build`."""

    @property
    def place(self) -> str:
        """Where it lies in its run."""

    def record(self) -> dict[str, Any]:
        """Return its facts as JSON values."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a build says to its readers; the base of each kind's own facts."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @classmethod
    def of(cls, build: Recorded) -> Self:
        """Read the facts of a build.

        Raises:
            CorruptBuildError: the manifest holds others.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            facts: Self = TypeAdapter(cls).validate_python(build.record())
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise CorruptBuildError(
                f"the manifest of {build.place} is not one of this raysys: fact {name!r}: "
                f"{first['msg']}"
            ) from error
        return facts

    def record(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        return record
