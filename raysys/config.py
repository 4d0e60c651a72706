"""Typed configuration: a dataclass schema, a YAML file, dotted overrides.

A schema is a (nested) dataclass with checks in `__post_init__`. Later sources win: the schema's
defaults, then the YAML file, then `key=value` overrides. Unknown keys fail and name the nearest.
Fields made with `local()` do not belong to a build's identity: paths, worker counts, logging.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from raysys.errors import ConfigError

T = TypeVar("T")


def local(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """Declare a field that says where or how fast, not what: it never enters a build_id."""
    metadata = {"identity": False}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class RayConfig:
    """How a job finds its cluster.

    Attributes:
        address: `local` starts a private cluster, `host:port` or `ray://` joins one; None joins
            the cluster that is already there, else starts a private one.
        num_cpus: CPUs of a private cluster; None takes what the machine has.
        object_store_mb: object store of a private cluster in MiB, 80 or more.
    """

    address: str | None = local(None)
    num_cpus: int | None = local(None)
    object_store_mb: int = local(512)

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that Ray would refuse later."""
        require(self.object_store_mb >= 80, "ray.object_store_mb", self.object_store_mb, ">= 80")
        require(self.num_cpus is None or self.num_cpus >= 1, "ray.num_cpus", self.num_cpus, ">= 1")


@dataclasses.dataclass
class JobConfig:
    """What every job knows.

    Attributes:
        run: the workspace, a local path or a URI such as `s3://bucket/prefix`.
        seed: the one source of randomness.
        force: rebuild although a finished build with the same inputs and settings exists.
        cache_dir: where builds on object stores are fetched to.
        ray: how the job finds its cluster.
    """

    run: str = local("")
    seed: int = 0
    force: bool = local(False)
    cache_dir: str | None = local(None)
    ray: RayConfig = local(factory=RayConfig)


def require(condition: bool, key: str, value: object, accepted: str) -> None:
    """Raise ConfigError with one uniform sentence unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r} is not accepted: expected {accepted}")


def require_run(cfg: JobConfig) -> None:
    """Raise ConfigError when the job was not told its workspace."""
    require(bool(cfg.run), "run", cfg.run, "a directory or URI, e.g. run=runs/first")


def load(schema: type[T], overrides: Sequence[str] = (), *, yaml_path: str | None = None) -> T:
    """Build a `schema` instance from its defaults, a YAML file and `key=value` overrides.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not accepted.
    """
    merged = cast(DictConfig, OmegaConf.structured(schema))
    sources = [_read_yaml(yaml_path)] if yaml_path else []
    sources.append(_parse_overrides(overrides))
    for source in sources:
        _check_keys(merged, source)
        try:
            merged = cast(DictConfig, OmegaConf.merge(merged, source))
        except (OmegaConfBaseException, TypeError) as error:
            key = getattr(error, "full_key", None) or ", ".join(map(str, source))
            raise ConfigError(f"{key}: {_one_line(error)}") from error
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def as_dict(cfg: Any) -> dict[str, Any]:
    """Return a dataclass configuration as plain nested dictionaries."""
    return dataclasses.asdict(cfg)


def identity(cfg: Any) -> dict[str, Any]:
    """Return the part of a configuration that decides what is built (no `local()` fields)."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(cfg):
        if not field.metadata.get("identity", True):
            continue
        value = getattr(cfg, field.name)
        result[field.name] = identity(value) if dataclasses.is_dataclass(value) else value
    return result


def digest(value: object) -> str:
    """Return 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_yaml(path: str) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist") from error
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {_one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"config file {path} must hold keys and values, not a list")
    return loaded


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {text!r} is not of the form key=value")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot parse {' '.join(overrides)!r}: {_one_line(error)}") from error


def _check_keys(schema: DictConfig, source: DictConfig) -> None:
    known = dict.fromkeys(_keys(schema))
    for key in _keys(source):
        if key not in known and not _inside_free_mapping(schema, key):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {key!r}{hint}")


def _inside_free_mapping(schema: DictConfig, key: str) -> bool:
    """Tell whether a parent of `key` is declared as a plain dict, which takes any key."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        node = OmegaConf.select(schema, ".".join(parts[:end]), default=None)
        if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
            return True
    return False


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        key = prefix + str(name)
        yield key
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _keys(child, f"{key}.")


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
