"""The pieces of work of prepare, file to file."""

import numpy as np
import pyarrow as pa

from raysys.prepare.clean import N_BUCKETS, partition
from raysys.prepare.tasks import _mapped, _one_chunk
from raysys.store.storage import open_filesystem


def test_of_a_piece_a_task_keeps_its_own_ids_only(tmp_path):
    rng = np.random.default_rng(0)
    ids = pa.array([f"item {n}" for n in range(5000)])
    users = pa.array([f"user {n}" for n in range(1000)])
    events = pa.array([None if n % 3 else n % 2 for n in range(4000)], pa.int32())
    rows = pa.table(
        {
            "user_id": pa.DictionaryArray.from_arrays(rng.integers(0, 1000, 4000, "int32"), users),
            "item_id": pa.DictionaryArray.from_arrays(rng.integers(0, 5000, 4000, "int32"), ids),
            "event": pa.DictionaryArray.from_arrays(events, pa.array(["view", "like"])),
            "rating": rng.random(4000).astype(np.float32),
        }
    )
    path = tmp_path / "piece.arrow"
    batches = partition(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as out:
        for batch in batches:
            out.write_batch(batch)
    filesystem, name = open_filesystem(str(path))
    with _mapped(filesystem, name) as stream, pa.ipc.open_file(stream) as file:
        assert file.num_record_batches == N_BUCKETS
        taken = _one_chunk([file.get_batch(k) for k in range(7, 11)], file.schema)
    path.unlink()
    expected = pa.Table.from_batches(batches[7:11])
    assert taken.to_pylist() == expected.to_pylist()
    assert 0 < len(taken) < 200
    for column in ("user_id", "item_id", "event"):
        [chunk] = taken[column].chunks
        assert set(chunk.dictionary.to_pylist()) == set(taken[column].to_pylist()) - {None}
