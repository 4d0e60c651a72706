"""What is served together: an index, everything it was made from, and the changes since."""

from __future__ import annotations

from raysys.errors import BuildError
from raysys.search.changes import KIND as CHANGES
from raysys.search.changes import current_changes
from raysys.store.builds import Build, Workspace


def served_chain(
    workspace: Workspace, *, build_id: str | None = None, verify: bool = True
) -> dict[str, Build]:
    """Open an index and everything that it was made from, bound by content.

    Args:
        workspace: the run.
        build_id: of the index; None takes the current one.
        verify: compare every file that is served with its hash.

    Raises:
        BuildError: a build is missing, damaged, or was made from others than those that are there.
    """
    index = workspace.open("index", build_id) if build_id else workspace.current("index")
    chain = workspace.chain(index)
    for kind in ("codes", "compressor", "embeddings"):
        if kind not in chain:
            raise BuildError(f"index {index.build_id} of {workspace.run} names no {kind} build")
    changes = current_changes(workspace, chain["embeddings"])
    if changes is not None:
        chain[CHANGES] = changes
    if verify:
        for kind, build in chain.items():
            if kind != "interactions":  # the raw log is never served
                build.verify()
    return chain
