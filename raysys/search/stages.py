"""Where the time of an answer goes."""

from __future__ import annotations

import time


class Stages:
    """Seconds by stage, each from the end of the one before.

    Attributes:
        seconds: {stage: seconds}, in the order in which they first ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """Say that a stage, or another part of it, ends now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def took_ms(self) -> dict[str, float]:
        """Milliseconds by stage, to the microsecond."""
        return {stage: round(1e3 * seconds, 3) for stage, seconds in self.seconds.items()}
