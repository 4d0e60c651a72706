"""Names of atoms: a file in the run that people edit.

    atoms/<content_id of the compressor build>.yaml

    dictionary: 5f0c...
    atoms:
      17: {name: Horror, proposed: Horror}
      204: {name: "Slow films for winter", proposed: Drama}

The atoms of another dictionary are other atoms, so the file is named after the content of the build
that holds the dictionary, and says so inside. `name` is what is shown. `proposed` is what was last
proposed: where the two differ, or only `name` is there, a person decided, and a new proposal leaves
`name` as it is. An empty name means that the atom shall have none.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping

import yaml

from raysys.errors import DataError, RaysysError, told
from raysys.store.builds import Build

log = logging.getLogger(__name__)

_FOLDER = "atoms"
_MAX_NAME = 200
_HEAD = (
    "# Names of the atoms of one dictionary. Edit `name`; it stays when names are proposed again,\n"
    "# as long as it differs from `proposed`. An empty name means none.\n"
)


@dataclasses.dataclass(frozen=True)
class AtomName:
    """What the file says of one atom.

    Attributes:
        name: shown; empty: none.
        proposed: what was last proposed; None: nothing was.
    """

    name: str
    proposed: str | None = None

    @property
    def is_corrected(self) -> bool:
        """Whether a person decided."""
        return self.name != self.proposed


def path_of(compressor: Build) -> str:
    """Return where in its run the names of a dictionary lie."""
    return f"{_FOLDER}/{compressor.content_id}.yaml"


def read_names(compressor: Build, *, n_atoms: int) -> dict[int, AtomName]:
    """Return what the file says; nothing where there is none.

    Raises:
        DataError: it is not as it should be; the message names the line.
    """
    path, storage = path_of(compressor), compressor.storage
    content = storage.read(path)
    if content is None:
        return {}
    return _Reader(f"{storage.run}/{path}", compressor.content_id, n_atoms).read(content)


def shown_names(compressor: Build, *, n_atoms: int) -> dict[int, str]:
    """Return the names to show; none, and a warning, where the file cannot be read."""
    try:
        names = read_names(compressor, n_atoms=n_atoms)
    except RaysysError as error:
        log.warning("atoms have no names: %s", told(error))
        return {}
    return {atom: entry.name for atom, entry in names.items() if entry.name}


def proposed_again(
    before: Mapping[int, AtomName], proposals: Mapping[int, str]
) -> dict[int, AtomName]:
    """Return names with new proposals; what a person decided stays."""
    names = {atom: entry for atom, entry in before.items() if entry.is_corrected}
    for atom, proposed in proposals.items():
        names[atom] = AtomName(names[atom].name if atom in names else proposed, proposed)
    return dict(sorted(names.items()))


def write_names(compressor: Build, names: Mapping[int, AtomName]) -> None:
    """Replace the file in one step."""
    lines = [f"{_HEAD}dictionary: {compressor.content_id}", "atoms:" if names else "atoms: {}"]
    for atom, entry in names.items():
        shown = [f"name: {_quoted(entry.name)}"]
        if entry.proposed is not None:
            shown.append(f"proposed: {_quoted(entry.proposed)}")
        lines.append(f"  {atom}: {{{', '.join(shown)}}}")
    compressor.storage.write_atomic(path_of(compressor), "\n".join(lines) + "\n")


def _quoted(text: str) -> str:
    """Return text as JSON writes it, which YAML reads as it was."""
    return json.dumps(text, ensure_ascii=False)


class _Reader:
    """Reads one file.

    Args:
        where: named in errors.
        content_id: of the dictionary.
        n_atoms: of the dictionary.
    """

    def __init__(self, where: str, content_id: str, n_atoms: int) -> None:
        self._where, self._content_id, self._n_atoms = where, content_id, n_atoms

    def read(self, content: bytes) -> dict[int, AtomName]:
        try:
            root = yaml.compose(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            reason = getattr(error, "problem", None) or "not valid"
            raise self._wrong(line, f"is no YAML: {reason}") from error
        except ValueError as error:  # not UTF-8
            raise self._wrong(None, f"is no text: {error}") from error
        top = {key: value for key, value, _ in self._pairs(root, "the file")}
        for key in top:
            if key not in ("dictionary", "atoms"):
                line = top[key].start_mark.line
                raise self._wrong(line, f"{key!r} is not known: expected dictionary and atoms")
        given = top.get("dictionary")
        if not isinstance(given, yaml.ScalarNode) or given.value != self._content_id:
            line = None if given is None else given.start_mark.line
            text = f"dictionary must be {self._content_id}: other atoms have other names"
            raise self._wrong(line, text)
        names = {}
        for key, value, line in self._pairs(top.get("atoms"), "atoms"):
            if not (key.isdecimal() and key.isascii() and int(key) < self._n_atoms):
                text = f"{key!r} is no atom of this dictionary: 0..{self._n_atoms - 1} are"
                raise self._wrong(line, text)
            names[int(key)] = self._entry(key, value, line)
        return names

    def _entry(self, atom: str, node: yaml.Node, line: int) -> AtomName:
        texts: dict[str, str] = {}
        for key, value, _ in self._pairs(node, f"atom {atom}"):
            if key not in ("name", "proposed") or not isinstance(value, yaml.ScalarNode):
                text = f"atom {atom}: {key!r} is not accepted: expected name: TEXT"
                raise self._wrong(line, text)
            text = "" if value.tag.endswith(":null") else value.value.strip()
            if len(text) > _MAX_NAME or not text.isprintable():
                reason = f"expected {_MAX_NAME} printable characters at most"
                raise self._wrong(line, f"atom {atom}: {key} is not accepted: {reason}")
            texts[key] = text
        if "name" not in texts:
            raise self._wrong(line, f"atom {atom} has no name: expected {{name: TEXT}}")
        return AtomName(texts["name"], texts.get("proposed"))

    def _pairs(self, node: yaml.Node | None, what: str) -> Iterator[tuple[str, yaml.Node, int]]:
        """Yield keys, values and lines of a mapping, which no key may be in twice."""
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            return
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node.start_mark.line, f"{what} is no mapping")
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise self._wrong(line, f"{what}: {getattr(key, 'value', key)!r} is there twice")
            seen.add(key.value)
            yield key.value, value, line

    def _wrong(self, line: int | None, reason: str) -> DataError:
        place = self._where if line is None else f"{self._where} line {line + 1}"
        return DataError(f"{place}: {reason}")
