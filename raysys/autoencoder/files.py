"""The `autoencoder` build: the model's weights, settings and levels, and how it was trained.

model.safetensors model.json levels.json   the model, which training and evaluation read
serving/                                   its compact weights, which a service maps
history.jsonl tensorboard/                 its training; no part of the build's content

Torch is imported where a model is read or written: a service does neither.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysys.autoencoder.config import Conv4RecConfig
from raysys.data.schema import RatingLevels
from raysys.scoring.files import FOLDER, LEVELS, open_weights, save_weights
from raysys.scoring.scorer import Scorer
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts
from raysys.timing.files import TIMED_FILES
from raysys.training.history import HISTORY_FILE, SCALARS_FOLDER, write_history

if TYPE_CHECKING:
    from raysys.autoencoder.model import Conv4Rec

SERVED_FILES = (FOLDER, LEVELS, *TIMED_FILES)
_WEIGHTS, _CONFIG = "model.safetensors", "model.json"


@dataclasses.dataclass(frozen=True)
class AutoencoderFacts(Facts):
    """What a model is, and what it was trained on.

    Attributes:
        n_items, n_levels: N and R.
        period: whose windows it is fitted on: val, test, or all.
        fitted_windows: numbers of these windows.
        fitted_until: UTC seconds where they end; None where time plays no part.
        epochs, choices: {head: epochs}, {setting: value} that validation chose.
        val_metrics: {metric: value} of the chosen epochs on the validation targets.
        rankings: that the model can give, the default first.
        n_parameters: numbers that were fitted.
    """

    n_items: int
    n_levels: int
    period: str
    fitted_windows: tuple[int, ...]
    fitted_until: int | None
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    choices: dict[str, float] = dataclasses.field(default_factory=dict)
    val_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    rankings: tuple[str, ...] = ()
    n_parameters: int = 0


class Autoencoder:
    """An `autoencoder` build, opened.

    Attributes:
        facts: what the model is.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self.facts = AutoencoderFacts.of(build)

    @classmethod
    def open(cls, build: Build) -> Autoencoder:
        """Open an `autoencoder` build; the model is read when it is asked for."""
        return cls(build)

    @functools.cached_property
    def model(self) -> Conv4Rec:
        """The model in eval mode; weights stay on the disk until they are used."""
        from safetensors.torch import load_file

        from raysys.autoencoder.model import Conv4Rec

        state = load_file(self._build.path(_WEIGHTS))
        cfg = Conv4RecConfig(**json.loads(self._build.path(_CONFIG).read_text()))
        levels = RatingLevels.load(self._build.path(LEVELS))
        return Conv4Rec.restored(state, cfg, levels).frozen()

    def scorer(self) -> Scorer:
        """Return the model as a service has it, its rows mapped."""
        return Scorer(open_weights(self._build))


def write_model(draft: Draft, model: Conv4Rec) -> None:
    """Write the weights, settings and levels of a model into a build that is being made."""
    from safetensors.torch import save_file

    from raysys.autoencoder.compact import weights_of

    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, draft.path(_WEIGHTS))
    draft.path(_CONFIG).write_text(json.dumps(dataclasses.asdict(model.cfg), indent=1))
    model.levels.save(draft.path(LEVELS))
    save_weights(draft, weights_of(model))


def write_training(draft: Draft, history: Sequence[dict[str, Any]]) -> None:
    """Write what a training reported; builds that differ in it alone have one content."""
    draft.leave_out(HISTORY_FILE, f"{SCALARS_FOLDER}/")
    write_history(draft.staging, history)
