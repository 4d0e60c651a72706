"""What a replica measures of itself, for Prometheus.

Names begin with `raysys_`; times are seconds. Every series carries the replica that it is of, so
that one answer can hold all of them.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from raysys.http.wire import VERSION
from raysys.search.query import Answer

if TYPE_CHECKING:  # keeps the search out of this module
    from raysys.events.feed import Feed
    from raysys.http.wire import Followed
    from raysys.search.search import Search

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (*(0.0005, 0.001, 0.002, 0.005), *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
_STAGE_SECONDS = (*(0.00005, 0.0001, 0.0002, 0.0005), *_SECONDS[1:10])


class Metrics:
    """The measures of one replica.

    Args:
        current: what is served.
        following: how it follows its run; None: it does not.
        feed: takes events; None: none are taken.
    """

    def __init__(
        self,
        current: Callable[[], Search],
        following: Callable[[], Followed] | None,
        feed: Feed | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "raysys_request_seconds",
            "Time of requests by route and status",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "raysys_stage_seconds",
            "Time of the stages of lists",
            ("stage",),
            buckets=_STAGE_SECONDS,
            registry=self._registry,
        )
        self._empty = Counter(
            "raysys_empty_answers", "Lists without an item", ("route",), registry=self._registry
        )
        self._degraded = Counter(
            "raysys_degraded_answers",
            "Lists that are not what was asked for",
            ("reason",),
            registry=self._registry,
        )
        self.running = Gauge(
            "raysys_running_requests", "Requests that are answered now", registry=self._registry
        )
        # a look at labels takes as long as counting; there are few: routes, statuses and stages
        self._of_request = functools.cache(self._requests.labels)
        self._of_stage = functools.cache(self._stages.labels)
        self._events = Counter("raysys_events", "Events that were taken", registry=self._registry)
        self._registry.register(_Served(current, following, feed))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._of_request(method, route, status).observe(seconds)

    def answered(self, route: str, answers: Iterable[Answer]) -> None:
        """Count the lists of one request, whose stages they share."""
        took_ms: Mapping[str, float] = {}
        for answer in answers:
            took_ms = answer.took_ms
            if answer.degraded is not None:
                self._degraded.labels(answer.degraded.reason).inc()
            self.listed(route, len(answer.items))
        for stage, milliseconds in took_ms.items():
            self._of_stage(stage).observe(milliseconds / 1e3)

    def listed(self, route: str, n_items: int) -> None:
        """Count one list."""
        if not n_items:
            self._empty.labels(route).inc()

    def took(self, n_events: int) -> None:
        """Count events that were written down."""
        self._events.inc(n_events)

    def text(self) -> str:
        """Return all measures as Prometheus reads them."""
        return generate_latest(self._registry).decode()


class _Served:
    """What is served now, read when it is asked for."""

    def __init__(
        self,
        current: Callable[[], Search],
        following: Callable[[], Followed] | None,
        feed: Feed | None,
    ) -> None:
        self._current, self._following, self._feed = current, following, feed

    def collect(self) -> Iterator[Metric]:
        """Yield the measures, as a registry asks for them."""
        search = self._current()
        built = search.served.index.manifest.notes.get("created")
        if built is not None:
            age = time.time() - datetime.datetime.fromisoformat(built).timestamp()
            yield GaugeMetricFamily(
                "raysys_index_age_seconds", "Time since the index was built", age
            )
        yield GaugeMetricFamily("raysys_items", "Items that lists may hold", search.n_items)
        yield GaugeMetricFamily("raysys_users", "Stored users", search.n_users)
        if search.engine.counted_until is not None:
            behind = time.time() - search.engine.counted_until
            yield GaugeMetricFamily(
                "raysys_counters_age_seconds", "Time since the newest event that counts", behind
            )
        builds = GaugeMetricFamily(
            "raysys_served", "1: what is served", labels=("index", "changes", "version")
        )
        builds.add_metric([search.build_id, search.changes_id or "", VERSION], 1)
        yield builds
        if self._following is not None:
            state = self._following()
            yield GaugeMetricFamily(
                "raysys_swaps", "Newer builds that were taken since the start", state.swaps
            )
            yield GaugeMetricFamily(
                "raysys_refused", "1: something newer is refused", int(state.refused is not None)
            )
        if self._feed is not None:
            recent = self._feed.recent
            yield GaugeMetricFamily("raysys_recent_events", "Events in memory", recent.n_events)
            yield GaugeMetricFamily("raysys_recent_users", "Users with such", recent.n_users)
            yield GaugeMetricFamily(
                "raysys_recent_dropped", "Events that made way for newer ones", recent.n_dropped
            )


def together(texts: Mapping[str, str]) -> str:
    """Return the measures of several replicas in one text, each with a label `replica`.

    Args:
        texts: {replica: what its `Metrics.text` returned}.
    """
    registry = CollectorRegistry()
    registry.register(_Together(texts))
    return generate_latest(registry).decode()


class _Together:
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield the measures of all, as a registry asks for them."""
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                kept = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    kept.samples.append(
                        sample._replace(labels={**sample.labels, "replica": replica})
                    )
        yield from families.values()
