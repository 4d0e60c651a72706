"""Typed configuration: a dataclass schema, a YAML file, dotted overrides.

A schema is a (nested) dataclass with checks in `__post_init__`. Later sources win: the schema's
defaults, then the YAML file, then `key=value` overrides. Unknown keys fail and name the nearest.
A value is text until its field's type reads it (see `fields`), in a file too.

A key that was renamed or deleted is accepted for one version, with a warning. The class that had it
says so in a plain attribute: `RENAMED = {"old": "new"}` or `GONE = {"old": "what to do instead"}`.
Where several old keys together mean something today, a classmethod `from_old(tree, prefix)` returns
the section's keys of today; the order in which they were given does not matter.
Fields made with `local()` do not belong to a build's identity: paths, worker counts, logging.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from raysys import fields, flow
from raysys.errors import ConfigError

T = TypeVar("T")

log = logging.getLogger(__name__)


def local(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """Declare a field that says where or how fast, not what: it never enters a build_id."""
    metadata = {"identity": False}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def location(default: str | None = "") -> Any:
    """Declare a `local` field that holds a path or URI.

    `load` makes it absolute, so that workers and replicas, which stand in other folders, open what
    the user named.
    """
    return dataclasses.field(default=default, metadata={"identity": False, fields.LOCATION: True})


def identifier(default: str | None = None) -> Any:
    """Declare a field that holds an id: whatever is typed is one, also the word null."""
    return dataclasses.field(default=default, metadata={fields.IDENTIFIER: True})


@dataclasses.dataclass
class RayConfig:
    """How a job finds its cluster.

    Attributes:
        address: `local` starts a private cluster, `host:port` or `ray://` joins one; null joins
            the cluster that is already there, else starts a private one.
        num_cpus: CPUs of a private cluster; null takes what the machine has.
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
        progress: `bar` shows long work as one live line, `log` as log lines, `off` not at all;
            `auto` is `bar` on a terminal, else `log`.
        tracking: `mlflow` keeps settings, metrics, build ids and reports of prepare, train, index,
            evaluate, pipeline and tune as runs of MLflow; null: nothing.
        ray: how the job finds its cluster.
    """

    run: str = location()
    seed: int = 0
    force: bool = local(False)
    cache_dir: str | None = location(None)
    progress: str = local("auto")
    tracking: str | None = local(None)
    ray: RayConfig = local(factory=RayConfig)


def require(condition: bool, key: str, value: object, accepted: str) -> None:
    """Raise ConfigError with one uniform sentence unless `condition` holds."""
    if not condition:
        raise fields.refused(key, value, accepted)


def require_run(cfg: JobConfig) -> None:
    """Raise ConfigError when the job was not told its workspace."""
    require(bool(cfg.run), "run", cfg.run, "a directory or URI, e.g. run=runs/first")


def load(
    schema: type[T],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    yaml_path: str | None = None,
) -> T:
    """Build a `schema` instance from its defaults, a YAML file and `key=value` overrides.

    Args:
        schema: a dataclass.
        overrides: words `key=value`, or values by dotted key.
        yaml_path: a file of nested keys.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is not accepted, or a key
            has two values, one by its old name.
    """
    tree: dict[str, Any] = {}
    for key, raw in read_yaml(yaml_path).items() if yaml_path else ():
        _assign(schema, tree, key, raw)
    pairs = overrides.items() if isinstance(overrides, Mapping) else _pairs(overrides)
    for key, raw in pairs:
        _assign(schema, tree, key, raw)
    return fields.make(schema, _of_today(schema, tree, ""))


def with_values(cfg: T, values: Mapping[str, Any], *, prefix: str = "") -> T:
    """Return a copy of a configuration with some dotted keys replaced, read and checked.

    Args:
        cfg: stays as it is.
        values: by dotted key, as text or typed.
        prefix: what messages put before a key.

    Raises:
        ConfigError: a key is unknown, or a value is not accepted.
    """
    tree = with_names_of_today(type(cfg), values, prefix=prefix)
    return fields.changed(copy.deepcopy(cfg), tree, prefix)


def with_names_of_today(
    schema: type, values: Mapping[str, Any], *, prefix: str = ""
) -> dict[str, Any]:
    """Return values by dotted key as nested keys of today, without those that are gone.

    Args:
        schema: a dataclass.
        values: by dotted key.
        prefix: what messages put before a key.

    Raises:
        ConfigError: a key has two values, one by its old name.
    """
    tree: dict[str, Any] = {}
    for key, raw in values.items():
        _assign(schema, tree, key, raw)
    return _of_today(schema, tree, prefix)


def as_dict(cfg: Any) -> dict[str, Any]:
    """Return a dataclass configuration as plain nested dictionaries."""
    return dataclasses.asdict(cfg)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of nested settings."""
    found: dict[str, Any] = {}
    for key, entry in tree.items():
        if isinstance(entry, Mapping) and entry:
            found |= flat(entry, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = entry
    return found


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


class _Loader(yaml.BaseLoader):
    """Reads YAML with every scalar as text; one that is null without quotes remembers that."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text: str = super().construct_scalar(node)
        return flow.scalar(text, quoted=bool(node.style))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = {str(name) for name in names if names.count(name) > 1}
        if twice:
            raise yaml.YAMLError(f"key {min(twice)!r} stands there twice")
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


def read_yaml(path: str) -> dict[str, Any]:
    """Return the nested keys of a file, every value as text.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            loaded = yaml.load(file, Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {_one_line(error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file {path} must hold keys and values")
    return loaded


def _pairs(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"argument {word!r} is not of the form key=value; "
                "quote a value with blanks for the shell: 'titles=[Toy Story]'"
            )
        yield key, text


def _assign(schema: type, tree: dict[str, Any], key: str, raw: Any) -> None:
    """Put a value at a dotted key, as it is spelled; a mapping adds to the one that is there."""
    *parents, name = key.split(".")
    path: list[str] = []
    owner: Any = schema
    for spelled in (*parents, name):
        path.append(getattr(owner, "RENAMED", {}).get(spelled, spelled))
        owner = fields.section(owner, path[-1])
    for parent in parents:
        below = tree.get(parent)
        tree[parent] = tree = dict(below) if isinstance(below, Mapping) else {}
    tree[name] = _merged(tree.get(name), fields.assigned(schema, path, raw))


def _of_today(owner: Any, tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the values of the section `owner` by their keys of today."""
    if hasattr(owner, "from_old"):
        tree = owner.from_old(tree, prefix)
    today: dict[str, Any] = {}
    old: dict[str, Any] = {}
    for name, value in tree.items():
        if name in getattr(owner, "GONE", {}):
            advice = owner.GONE[name]
            log.warning("key %s%s is gone, its value is ignored: %s", prefix, name, advice)
            continue
        new = getattr(owner, "RENAMED", {}).get(name, name)
        if new != name:
            log.warning("key %s%s is called %s%s now", prefix, name, prefix, new)
        below = fields.section(owner, new)
        if below is not None and isinstance(value, Mapping):
            value = _of_today(below, value, f"{prefix}{new}.")
        (today if new == name else old)[name] = value
    for name, value in old.items():
        new = owner.RENAMED[name]
        if new not in today:
            today[new] = value
        else:
            today[new] = _agreed(value, today[new], f"{prefix}{name}", f"{prefix}{new}")
    return today


def _agreed(old: Any, new: Any, old_key: str, new_key: str) -> Any:
    """Return the value of a key that was given by its old name too; null says nothing there."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        both = {
            name: _agreed(old[name], new[name], f"{old_key}.{name}", f"{new_key}.{name}")
            for name in old.keys() & new.keys()
        }
        return {**old, **new, **both}
    if fields.is_null(old) or str(old) == str(new):
        return new
    raise ConfigError(
        f"{old_key}={old} and {new_key}={new} are one key with two values: give {new_key} alone"
    )


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
