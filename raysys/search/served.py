"""What is served together: an index, everything it was made from, and the changes since."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from raysys.autoencoder.files import SERVED_FILES
from raysys.compressor.files import Coded
from raysys.errors import BuildError
from raysys.search.changes import current_changes
from raysys.search.users import UserStore
from raysys.store.builds import Build, Workspace


@dataclasses.dataclass(frozen=True)
class Served:
    """An index and what belongs to it, bound by content.

    Attributes:
        index: the index.
        coded: what it was made from.
        changes: of items since the embeddings were made; None without any.
    """

    index: Build
    coded: Coded
    changes: Build | None = None

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        *,
        build_id: str | None = None,
        verify: bool = True,
        without: Collection[str] = (),
    ) -> Served:
        """Open an index of a run with everything that it was made from.

        Args:
            workspace: the run.
            build_id: of the index; None takes the current one.
            verify: compare every file that is served with its hash.
            without: ids of changes that are passed over, for those before them.

        Raises:
            BuildError: a build is missing, damaged, or was made from others than those that are
                there.
        """
        index = workspace.open("index", build_id) if build_id else workspace.current("index")
        coded = Coded.of(workspace.chain(index), f"index {index.build_id} of {workspace.run}")
        served = cls(index, coded, current_changes(workspace, coded.embeddings, without))
        if verify:
            served.verify()
        return served

    def verify(self, *, known: Served | None = None) -> None:
        """Check the hashes of what a service reads: not the log, and not what training keeps.

        Args:
            known: a set whose builds were checked already.

        Raises:
            CorruptBuildError: a file differs; the message names it.
        """
        left = [self.coded.interactions]
        if UserStore.kept_by(self.index):
            left.append(self.coded.profiles)
        checked = [(build.kind, build.state()) for build in (known.builds if known else ())]
        for build in self.builds:
            if (build.kind, build.state()) in checked:
                continue
            if build is self.coded.autoencoder:
                build.verify(*SERVED_FILES)
            elif build not in left:
                build.verify()

    @property
    def builds(self) -> list[Build]:
        """All of them, by kind."""
        found = [self.index, self.changes, *self.coded.builds]
        return sorted((build for build in found if build is not None), key=lambda b: b.kind)

    @property
    def refs(self) -> list[dict[str, str]]:
        """What tells this set from another one: index, changes, and where histories are from."""
        builds = (self.index, self.changes, self.histories)
        return [build.state() for build in builds if build is not None]

    @property
    def histories(self) -> Build | None:
        """The build that histories are read from, where that is not the index."""
        return None if UserStore.kept_by(self.index) else self.coded.profiles

    @property
    def build_ids(self) -> dict[str, str]:
        """{kind: build_id} of all that is served."""
        return {build.kind: build.build_id for build in self.builds}


def roll_back(workspace: Workspace, *, build_id: str | None = None, kind: str = "index") -> Served:
    """Make the index current that was so before; the changes that belong to it come with it.

    All of it is verified first. The builds that were current stay; `index` makes them so again.

    Args:
        workspace: the run.
        build_id: of a build that was current before; None takes the one right before.
        kind: `changes`: the index stays, and its changes of before come back.

    Raises:
        BuildError: there is none, it was not current before, or it is damaged or mixed.
    """
    present, before = workspace.current(kind), workspace.before(kind)
    if not before:
        raise BuildError(
            f"{workspace.run} holds no {kind} build that was current before the present one"
        )
    if build_id is not None and build_id not in before:
        raise BuildError(f"{kind} {build_id} was not current before: {', '.join(before)} were")
    if kind == "index":
        served = Served.open(workspace, build_id=build_id or before[0])
        workspace.go_back(served.index, present=present)
        return served
    later = [] if build_id is None else before[: before.index(build_id)]
    served = Served.open(workspace, without=[present.build_id, *later])
    if served.changes is None:
        raise BuildError(f"{workspace.run} holds no earlier changes of the index that is served")
    workspace.go_back(served.changes, present=present)
    return served
