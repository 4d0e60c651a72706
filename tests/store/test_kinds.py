import dataclasses
import json

import pytest

from raysys.errors import CorruptBuildError, SchemaVersionError
from raysys.store.builds import Workspace
from raysys.store.kinds import KINDS, Facts, Kind


@dataclasses.dataclass(frozen=True)
class Sizes(Facts):
    n_items: int
    settings: dict[int, int]
    time_range: tuple[int, int] | None = None


@pytest.fixture
def ws(tmp_path):
    return Workspace(str(tmp_path / "run"))


def test_facts_read_back_as_they_were_written(ws):
    facts = Sizes(3, {10: 4}, (1, 2))
    build = ws.build("index", config={}, write=lambda draft: facts)
    assert Sizes.of(ws.current("index")) == facts
    assert build.record() == {"n_items": 3, "settings": {"10": 4}, "time_range": [1, 2]}


@pytest.mark.parametrize("facts", [{"n_items": 3}, {"n_items": 3, "settings": {}, "other": 1}])
def test_facts_of_another_form_are_refused(ws, facts):
    @dataclasses.dataclass(frozen=True)
    class Other(Facts):
        def record(self):
            return facts

    ws.build("index", config={}, write=lambda draft: Other())
    with pytest.raises(CorruptBuildError, match=r"settings|other"):
        Sizes.of(ws.current("index"))


def test_a_version_of_one_kind_is_a_new_build_of_that_kind_alone(ws, monkeypatch):
    def write(kind):
        return ws.build(kind, config={}, write=lambda draft: Sizes(1, {}))

    before = {kind: write(kind).build_id for kind in ("codes", "index")}
    monkeypatch.setitem(KINDS, "index", Kind("index", writer="index", version=9, reads=(9,)))
    assert write("codes").build_id == before["codes"]
    with pytest.raises(SchemaVersionError, match=r"version 8, .* reads 9: .* from index on"):
        ws.open("index", before["index"])
    assert write("index").build_id != before["index"]


def test_a_reader_may_read_earlier_versions(ws, monkeypatch):
    old = ws.build("codes", config={}, write=lambda draft: Sizes(1, {}))
    monkeypatch.setitem(KINDS, "codes", Kind("codes", writer="train", version=5, reads=(4, 5)))
    assert ws.current("codes").build_id == old.build_id
    path = f"{ws.run}/codes/{old.build_id}/manifest.json"
    with open(path) as file:
        record = json.load(file)
    with open(path, "w") as file:
        json.dump(record | {"schema_version": 3}, file)
    with pytest.raises(SchemaVersionError, match="version 3, this raysys reads 4 or 5"):
        ws.current("codes")
