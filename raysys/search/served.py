"""What is served together: an index, everything it was made from, and the changes since."""

from __future__ import annotations

import dataclasses

from raysys.compressor.files import Coded
from raysys.search.changes import current_changes
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
        cls, workspace: Workspace, *, build_id: str | None = None, verify: bool = True
    ) -> Served:
        """Open an index of a run with everything that it was made from.

        Args:
            workspace: the run.
            build_id: of the index; None takes the current one.
            verify: compare every file that is served with its hash.

        Raises:
            BuildError: a build is missing, damaged, or was made from others than those that are
                there.
        """
        index = workspace.open("index", build_id) if build_id else workspace.current("index")
        coded = Coded.of(workspace.chain(index), f"index {index.build_id} of {workspace.run}")
        served = cls(index, coded, current_changes(workspace, coded.embeddings))
        if verify:
            for build in served.builds:
                if build is not coded.interactions:  # the raw log is never served
                    build.verify()
        return served

    @property
    def builds(self) -> list[Build]:
        """All of them, by kind."""
        found = [self.index, self.changes, *self.coded.builds]
        return sorted((build for build in found if build is not None), key=lambda b: b.kind)

    @property
    def build_ids(self) -> dict[str, str]:
        """{kind: build_id} of all that is served."""
        return {build.kind: build.build_id for build in self.builds}
