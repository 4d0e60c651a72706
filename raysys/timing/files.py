"""The time form of a model with its counters, as a build keeps it.

counters.npy   float32 [H, N]
timing.json    the form, the spread of its scores, what biases are measured from, and when the
               counters stand
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.timing.counters import Counters
from raysys.timing.form import TimeForm

TIMED_FILES = _COUNTERS, _FORM = "counters.npy", "timing.json"


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a model's prior over items follows from.

    Attributes:
        form: how time enters.
        spread: of the scores that it goes with.
        counters: of the items, as they stand.
        top: largest value of the list at the training, from which biases are measured.
    """

    form: TimeForm
    spread: float
    counters: Counters
    top: float

    @classmethod
    def at_first(cls, form: TimeForm, spread: float, counters: Counters) -> Self:
        """Return that of a training, whose first item has a bias of 0."""
        return cls(form, spread, counters, form.top(counters))

    def prior(self) -> Floats:
        """Return the prior of the consume scores, [N]; at most 0 with the training's counters."""
        return np.asarray(self.form.bias(self.counters, self.top) * np.float32(self.spread))

    def with_counters(self, counters: Counters) -> Self:
        """Return it with other counters of the same items."""
        return dataclasses.replace(self, counters=counters)

    def added(self, items: NDArray[np.integer[Any]], times: NDArray[np.integer[Any]]) -> Self:
        """Return it with further events; see `Counters.added`."""
        return dataclasses.replace(self, counters=self.counters.added(items, times))

    def save(self, draft: Draft) -> None:
        """Write it into a build that is being made."""
        np.save(draft.path(_COUNTERS), self.counters.values)
        told = self.form.as_choices(self.spread) | {"time": self.counters.time, "top": self.top}
        draft.path(_FORM).write_text(json.dumps(told, indent=1))

    @classmethod
    def of_build(cls, build: Build) -> Self | None:
        """Read what `save` wrote; None where a build has none."""
        if _FORM not in build.files():
            return None
        told = json.loads(build.path(_FORM).read_text())
        form, spread = TimeForm.of_choices(told)
        values = np.load(build.path(_COUNTERS), mmap_mode="r")
        counters = Counters(values, int(told["time"]))
        if "top" not in told:  # changes of an earlier version
            return cls.at_first(form, spread, counters)
        return cls(form, spread, counters, told["top"])
