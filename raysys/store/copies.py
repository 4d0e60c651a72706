"""Copies of builds in another run: the same ids, contents and files, every hash compared.

A build appears in the other run by one write, as if it had been made there. One that is there
already, whole, is not copied again: a copy that was interrupted goes on.
"""

from __future__ import annotations

import logging
import shutil

from raysys.errors import BuildError, CorruptBuildError, SchemaVersionError
from raysys.store.builds import Build, Workspace
from raysys.store.drafts import Draft, remove_abandoned
from raysys.store.leases import leased

log = logging.getLogger(__name__)


def copy_build(build: Build, target: Workspace) -> bool:
    """Copy a build into another run; return whether it was not there yet.

    Raises:
        CorruptBuildError: a file is not what the manifest says, before or after the copy.
        BuildError: the other run cannot be written, or another job took over.
    """
    if target.use is not None:
        target.use.add(build.place)
    storage = target.storage
    try:
        with leased(storage, build.place) as lease:
            if _is_there(build, target):
                return False
            build.verify()
            remove_abandoned(storage)
            header = {"kind": build.kind, "build_id": build.build_id}
            draft = Draft(storage, header, [lease], anew=False)
            try:
                for name in build.files():
                    shutil.copyfile(build.path(name), draft.path(name))
                draft.replace(build.manifest)
            except BaseException:
                draft.discard()
                raise
            finally:
                draft.close()
    except OSError as error:
        raise BuildError(f"cannot write {build.place} to {target.run}: {error}") from error
    target.open(build.kind, build.build_id).check()
    return True


def _is_there(build: Build, target: Workspace) -> bool:
    try:
        there = target.open(build.kind, build.build_id)
        there.check()
    except (CorruptBuildError, SchemaVersionError) as error:
        log.warning("build is copied anew place=%s: %s", build.place, error)
        return False
    except BuildError:  # there is none
        return False
    return there.state() == build.state()
