"""Builds that tests write file by file, without the job that makes them."""

import shutil
import tempfile
import weakref
from pathlib import Path


class Planted:
    """Files of a build to come; `path` and `commit` as on a draft."""

    def __init__(self, workspace, kind, settings):
        self._workspace, self._kind, self._settings = workspace, kind, settings
        self.staging = Path(tempfile.mkdtemp(prefix="raysys-planted-"))
        self.url = str(self.staging)
        weakref.finalize(self, shutil.rmtree, self.staging, ignore_errors=True)

    def path(self, name):
        target = self.staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(self, facts):
        def write(draft):
            shutil.copytree(self.staging, draft.staging, dirs_exist_ok=True)
            return facts

        return self._workspace.build(self._kind, write=write, **self._settings)


def begin(workspace, kind, **settings):
    """Return what `Workspace.build` will write once `commit` is called."""
    return Planted(workspace, kind, settings)
