"""Settings of the service."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, FiniteFloat, ValidationError

from raysys import fields
from raysys.config import JobConfig, location, require
from raysys.config import local as local_field
from raysys.events.feed import FeedOptions
from raysys.http.arms import Experiment
from raysys.http.keys import KeyRing
from raysys.http.logs import Logs
from raysys.http.service import ServiceOptions
from raysys.http.wire import Scenario
from raysys.search.query import Wire

Form = TypeVar("Form", bound=Wire)

_CLOCKS = ("machine", "events")
_DAY_S = 86_400


@dataclasses.dataclass
class EventsConfig:
    """How a service takes events.

    Attributes:
        take: false: none are taken, and those of other services are not followed.
        ttl_days: days for which an event counts in lists, unless an index holds it.
        kept: events that each replica holds in memory; users idle for longest make way.
        clock: `machine`, or `events`: the newest event's time, for logs that are played again.
    """

    take: bool = True
    ttl_days: float = 30.0
    kept: int = 500_000
    clock: str = "machine"

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(0 < self.ttl_days < math.inf, "events.ttl_days", self.ttl_days, "more than 0")
        require(self.kept >= 1, "events.kept", self.kept, "1 or more")
        require(self.clock in _CLOCKS, "events.clock", self.clock, " or ".join(_CLOCKS))

    def options(self) -> FeedOptions:
        """Return how the feed of a replica goes."""
        event_time = self.clock == "events"
        return FeedOptions(ttl_s=self.ttl_days * _DAY_S, most=self.kept, event_time=event_time)


class ArmEntry(Wire):
    """An arm as a configuration has it.

    `build_id` is that of an index; without one the arm is answered from what the service follows.
    """

    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    build_id: str | None = None
    settings: Scenario = Scenario.model_validate({})


@dataclasses.dataclass
class ExperimentConfig:
    """An experiment on the users of the service.

    Attributes:
        name: of the experiment; null: there is none.
        arms: by name, such as `{a: {weight: 2}, b: {build_id: X, settings: {ranking: like}}}`.
        salt: gives users to arms; null: the name of the experiment.
        impressions: write down which lists users were given, for `raysys experiment report`.
    """

    name: str | None = None
    arms: dict[str, Any] = dataclasses.field(default_factory=dict)
    salt: str | None = None
    impressions: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an experiment that is none."""
        entries = self.entries()
        if self.name is None:
            named = not entries and not self.impressions
            require(named, "experiment.name", None, "a name where there are arms or impressions")
            return
        require(bool(self.name), "experiment.name", self.name, "a name")
        require(len(entries) > 1, "experiment.arms", self.arms, "two arms or more")

    def entries(self) -> dict[str, ArmEntry]:
        """Return the arms.

        Raises:
            ConfigError: one says what no arm may.
        """
        return parsed(ArmEntry, "experiment.arms", self.arms)


@dataclasses.dataclass
class ServeConfig(JobConfig):
    """Settings of the service.

    Attributes:
        name: of the Serve application.
        build_id: of the index to serve; null takes the current one.
        verify: compare every served file with its hash before answering.
        follow_s: seconds between looks for a newer index or newer changes, which are then served
            without a restart; 0: never, as with `build_id`.
        replicas: processes that answer, each on `cpus` CPUs; a fraction shares one. null: two, or
            one where two would leave no CPU free.
        max_replicas: replicas that are started as more requests come; null: no more.
        cpus: CPUs that Ray reserves for one replica.
        max_ongoing_requests: of one replica; the proxy queues what comes beyond.
        max_queued_requests: of one proxy, or of one replica behind HAProxy; what comes beyond is
            answered 503. -1: no limit.
        timeout_s: for an answer that is not short; what takes longer is answered 503.
        keys: file of keys that `raysys serve key` writes; null: whoever reaches the port may ask.
        logs: folder for the access and the audit log, JSON lines; null: none are written.
        scenarios: presets by name, such as `{home: {ranking: discover^0.3, k: 10}}`.
        events: what users did, as POST /v1/events brings it.
        experiment: on users: some are answered by another index, or with other settings.
        host: address to listen on; 0.0.0.0 for every interface.
        port: TCP port to listen on.
        route_prefix: path before /v1.
        local: serve from this process by uvicorn alone, without Ray.
    """

    name: str = local_field("raysys")
    build_id: str | None = local_field(None)
    verify: bool = local_field(True)
    follow_s: float = local_field(10.0)
    replicas: int | None = local_field(None)
    max_replicas: int | None = local_field(None)
    cpus: float = local_field(1.0)
    max_ongoing_requests: int = local_field(64)
    max_queued_requests: int = local_field(1024)
    timeout_s: float = local_field(10.0)
    keys: str | None = location(None)
    logs: str | None = location(None)
    scenarios: dict[str, Any] = local_field(factory=dict)
    events: EventsConfig = local_field(factory=EventsConfig)
    experiment: ExperimentConfig = local_field(factory=ExperimentConfig)
    host: str = local_field("127.0.0.1")
    port: int = local_field(8000)
    route_prefix: str = local_field("/")
    local: bool = local_field(False)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that Serve would refuse later."""
        require(self.replicas is None or self.replicas >= 1, "replicas", self.replicas, "1 or more")
        most, least = self.max_replicas, self.replicas or 1
        require(most is None or most >= least, "max_replicas", most, f"{least} or more")
        require(0 < self.timeout_s < math.inf, "timeout_s", self.timeout_s, "more than 0")
        require(0 <= self.follow_s < math.inf, "follow_s", self.follow_s, "0 or more")
        require(self.cpus >= 0, "cpus", self.cpus, "0 or more")
        ongoing = self.max_ongoing_requests
        require(ongoing >= 1, "max_ongoing_requests", ongoing, "1 or more")
        queued = self.max_queued_requests
        require(queued >= -1, "max_queued_requests", queued, "-1 or more")
        require(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        prefix = self.route_prefix
        accepted = "/ or a path that begins and does not end with /"
        ok = prefix == "/" or (prefix.startswith("/") and not prefix.endswith("/"))
        require(ok, "route_prefix", prefix, accepted)
        self.presets()
        logged = self.experiment.impressions
        require(
            self.events.take or not logged, "experiment.impressions", logged, "false without events"
        )

    def presets(self) -> dict[str, Scenario]:
        """Return the scenarios.

        Raises:
            ConfigError: one says what no preset may.
        """
        return parsed(Scenario, "scenarios", self.scenarios)

    def options(self, *, request_ids: bool, experiment: Experiment | None = None) -> ServiceOptions:
        """Return how a replica answers; it opens the files of keys and logs.

        Raises:
            ConfigError: one of them cannot be opened.
        """
        queued = self.max_queued_requests
        keys = None if self.keys is None else KeyRing(self.keys)
        if keys is not None:
            keys.start()
        return ServiceOptions(
            request_ids=request_ids,
            scenarios=self.presets(),
            keys=keys,
            logs=None if self.logs is None else Logs(self.logs),
            max_ongoing=None if queued < 0 else self.max_ongoing_requests + queued,
            timeout_s=self.timeout_s,
            experiment=experiment,
        )

    @property
    def following_s(self) -> float:
        """Seconds between looks for newer builds; 0 where one index is served for good."""
        return 0.0 if self.build_id is not None else self.follow_s


def parsed(form: type[Form], key: str, given: Mapping[str, Any]) -> dict[str, Form]:
    """Return the values of a mapping in their form.

    Raises:
        ConfigError: one has another; the message names its key.
    """
    found = {}
    for name, value in given.items():
        try:
            found[str(name)] = form.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (key, name, *first["loc"])))
            accepted = first["msg"].removeprefix("Input should be ")
            if first["type"] == "extra_forbidden":
                accepted = f"another key: {', '.join(form.model_fields)}"
            raise fields.refused(place, first["input"], accepted) from error
    return found
