"""A served set, opened, whatever has changed since: what searches over it share.

Newer changes of the same index need another search, but nothing of this again: the maps of files,
the tables of ids and users, the sample that P(consume) is normalised by.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import pyarrow as pa

from raysys.autoencoder.files import Autoencoder
from raysys.compressor.embeddings import Embeddings
from raysys.data.arrays import Floats
from raysys.data.profiles import Profiles
from raysys.index.files import SPREAD, IndexFacts, open_index
from raysys.index.strengths import Strengths
from raysys.scoring.normaliser import Normaliser
from raysys.scoring.scorer import Scorer
from raysys.search.ids import Ids
from raysys.search.items import open_names
from raysys.search.served import Served
from raysys.search.users import UserStore
from raysys.store.builds import Build
from raysys.timing.files import Timed


class Opened:
    """The builds of a served set but for its changes.

    Args:
        served: what is opened.
        users: read the stored users too.

    Attributes:
        compressor: the build of the dictionary.
        embeddings: of the items.
        codes: the index over them, with the biases of its build.
        scorer: the model, with the prior of its build; None without one.
        fitted_until: UTC seconds of the last event that the model was fitted to.
        spread: what a `Normaliser` needs beside the model.
        timed: counters of the items at the end of the training; None without any.
        users: the stored ones; None: there are none.
        built, names: the items' ids as a table, and their ids and titles.
        compiled: whether searches with changes (True) and without (False) have compiled theirs.
    """

    def __init__(self, served: Served, *, users: bool = True) -> None:
        coded = served.coded
        self._state = _state(served)
        self.compressor = coded.compressor
        self.embeddings = Embeddings.open(coded.embeddings)
        self.codes = open_index(served.index, coded)
        self.scorer: Scorer | None = None
        self.fitted_until: int | None = None
        self.timed: Timed | None = None
        self.spread: tuple[Floats | None, float] = (None, np.inf)
        if coded.autoencoder is not None:
            autoencoder = Autoencoder.open(coded.autoencoder)
            self.scorer = autoencoder.scorer()
            self.fitted_until = autoencoder.facts.fitted_until
            self.timed = Timed.of_build(coded.autoencoder)
            self.spread = _spread(served.index)
        self.users: UserStore | None = None
        if users and coded.profiles is not None:
            stored = UserStore.open(served.index)
            self.users = stored or UserStore.load(Profiles.open(coded.profiles))
        self.built: Ids
        self.names: pa.Table
        self.built, self.names = open_names(self.embeddings, served.index)
        self.compiled: set[bool] = set()
        self._counting = threading.Lock()
        self._strengths: Strengths | None = None

    def is_of(self, served: Served) -> bool:
        """Tell whether a set has the same index and histories, so all that this was opened from."""
        return self._state == _state(served)

    @property
    def strengths(self) -> Strengths:
        """What items hold of atoms, counted when something first asks for it.

        Raises:
            SearchError: the codes have no atoms.
        """
        with self._counting:  # else many requests at once would each go over all codes
            if self._strengths is None:
                self._strengths = Strengths(self.codes)
            return self._strengths

    @property
    def has_strengths(self) -> bool:
        """Tell whether `strengths` is there already."""
        return self._strengths is not None

    @functools.cached_property
    def normaliser(self) -> Normaliser:
        """Sums of P(consume) with the prior of the build."""
        assert self.scorer is not None
        return Normaliser(self.scorer, *self.spread)


def _spread(index: Build) -> tuple[Floats | None, float]:
    """Return what a `Normaliser` needs of an index build; None: sums are exact."""
    measured = IndexFacts.of(index).normaliser
    if measured is None:
        return None, np.inf
    spread: Floats = np.load(index.path(SPREAD), mmap_mode="r")
    return spread, measured["long"]


def _state(served: Served) -> list[dict[str, str]]:
    builds = (served.index, served.histories)
    return [build.state() for build in builds if build is not None]
