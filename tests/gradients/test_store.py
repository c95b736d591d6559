"""The store on disk: read without loading, verified, resumed to the same bytes, shared by processes."""

from __future__ import annotations

import json
import pickle
import random
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from reliability.damage import Way, damage
from small_models import make_examples, make_trajectory, small
from test_collect import SETTINGS

import gtp_exp
from gtp_exp.errors import UserError
from gtp_exp.files import sha256_file
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.store import GradientStore, StorageType, StoreWriter
from gtp_exp.gradients.store_command import main

ROWS = 40
ONE_BY_ONE = replace(
    SETTINGS,
    shard_rows=1,
    directions=[Direction.SGD, Direction.LESS],
    engine=Engine.HOOKS,  # the packed one tries two kernels, and another run may find the other one faster
)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    return make_trajectory(small(), tmp_path_factory.mktemp("trajectory"))


def write(directory: Path, trajectory, rows: int = 10, **changed):
    settings = replace(SETTINGS, **{"shard_rows": 4, **changed})
    return collect(small(), make_examples(rows), trajectory, directory, settings)


def shards(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): sha256_file(p) for p in sorted(directory.rglob("*.safetensors"))}


def test_rows_chunks_and_shards_are_one_array(tmp_path, trajectory):
    store = write(tmp_path, trajectory)
    rows = store.features(1, "less")
    whole = rows.rows(torch.arange(10))
    assert rows.shape == (10, 128) and whole.dtype == rows.dtype == torch.float32
    for size in (1, 3, 4, 100):
        parts = list(rows.chunks(size))
        assert all(len(part) <= size for _, part in parts)
        assert torch.equal(torch.cat([part for _, part in parts]), whole)
        assert all(torch.equal(part, whole[start : start + len(part)]) for start, part in parts)
    index = torch.tensor([9, 0, 4, 4, 3])
    assert torch.equal(rows.rows(index), whole[index])
    assert rows.rows(torch.tensor([], dtype=torch.long)).shape == (0, 128)
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            rows.rows(torch.tensor([outside]))


@pytest.mark.parametrize("storage", list(StorageType))
def test_every_storage_type_rounds_the_same_numbers(tmp_path, trajectory, storage):
    exact = write(tmp_path / "exact", trajectory)
    store = write(tmp_path / "rounded", trajectory, storage=storage)
    found = store.features(0, "less").rows(torch.arange(10))
    assert found.dtype == storage.dtype
    values = exact.features(0, "less").rows(torch.arange(10))
    if storage is StorageType.INT8:
        step = values.abs().amax(1, keepdim=True) / 127
        assert ((found - values).abs() <= 0.5001 * step).all()
        assert torch.equal(torch.cat([c for _, c in store.features(0, "less").chunks(3)]), found)
    else:
        assert torch.equal(found, values.to(storage.dtype))
    # Norms do not suffer from the rounding.
    assert torch.equal(store.norms(0, "less"), exact.norms(0, "less"))


def test_opening_and_reading_a_row_does_not_load_the_rest(tmp_path, trajectory):
    store = write(tmp_path, trajectory, rows=4)
    file = tmp_path / "checkpoint-00" / "shard-00000.safetensors"
    rows = GradientStore.open(tmp_path).features(0, "sgd")
    first = rows.rows(torch.tensor([0]))
    mapped = next(rows.chunks(4))[1]
    # A view of the file: its pages are in the process's maps, not in its own memory.
    assert str(file) in Path("/proc/self/maps").read_text()
    assert torch.equal(mapped[:1], first)
    assert store.verify() == []


def test_verification_finds_damage_and_collecting_again_repairs_it(tmp_path, trajectory, capsys, caplog):
    store = write(tmp_path, trajectory)
    before = shards(tmp_path)
    assert store.verify() == [] and main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "every checksum is right" in shown and "10 (" in shown and "step 4" in shown
    damaged, lost = (
        tmp_path / "checkpoint-01/shard-00001.safetensors",
        tmp_path / "checkpoint-00/shard-00000.safetensors",
    )
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    lost.unlink()
    assert [line.split(":")[0] for line in store.verify()] == [
        "checkpoint-00/shard-00000.safetensors",
        "checkpoint-01/shard-00001.safetensors",
    ]
    assert main([str(tmp_path)]) == 1
    assert write(tmp_path, trajectory).verify() == []
    assert "shard-00001.safetensors is damaged" in caplog.text
    assert shards(tmp_path) == before


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize(
    "name",
    ["plan.json", "rows.json", "checkpoint-00/shard-00001.json", "checkpoint-01/shard-00001.safetensors"],
)
def test_damage_in_an_unfinished_store_is_named_and_the_store_ends_as_undisturbed(
    tmp_path, trajectory, caplog, name, way
):
    write(tmp_path, trajectory, engine=Engine.HOOKS)
    before = shards(tmp_path)
    (tmp_path / "store.json").unlink()
    (tmp_path / "checkpoint-01" / "shard-00002.safetensors").unlink()
    damage(tmp_path / name, way, random.Random(name))
    again = write(tmp_path, trajectory, engine=Engine.HOOKS)
    assert again.verify() == [] and shards(tmp_path) == before
    assert again.ids == tuple(e.id for e in make_examples(10))
    # What is absent was not finished yet, but rows come with the plan.
    if way is not Way.DELETE or name == "rows.json":
        assert Path(name).name in caplog.text and "damaged" in caplog.text


def test_a_finished_store_is_not_computed_again(tmp_path, trajectory):
    write(tmp_path, trajectory)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    write(tmp_path, trajectory)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == times


def test_other_settings_are_not_mixed_in(tmp_path, trajectory):
    write(tmp_path, trajectory)
    for changed, word in (
        ({"seed": 8}, "seed"),
        ({"rows": 9}, "rows"),
        ({"storage": StorageType.FLOAT16}, "storage"),
    ):
        with pytest.raises(UserError, match=f"other settings.*{word}"):
            write(tmp_path, trajectory, **changed)
    with pytest.raises(UserError, match="checkpoints"):
        write(tmp_path, trajectory[:1])


def test_what_is_not_a_store_says_so(tmp_path, trajectory, capsys):
    with pytest.raises(UserError, match="is not a gradient store"):
        GradientStore.open(tmp_path)
    write(tmp_path, trajectory)
    (tmp_path / "store.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        GradientStore.open(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert "not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("store.json", b'{"format": 2, "rows": 10}', "is damaged, it lacks checkpoints, dim, directions,"),
        ("rows.json", b"{}", "rows.json is missing or damaged; make the store again"),
        ("rows.json", None, "rows.json is missing or damaged; make the store again"),
        ("checkpoint-00/shard-00000.safetensors", b"", "is missing or damaged .*; make the store again"),
        ("checkpoint-00/shard-00000.safetensors", None, "is missing or damaged .*; make the store again"),
    ],
)
def test_a_store_that_was_copied_in_part_is_refused_by_the_file(tmp_path, name, content, told):
    """Each ended in a traceback: KeyError, FileNotFoundError or SafetensorError."""
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    gtp_exp.GradientStore.from_arrays(tmp_path / "store", rows)
    (tmp_path / "store" / name).unlink()
    if content is not None:
        (tmp_path / "store" / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        gtp_exp.select(GradientStore.open(tmp_path / "store"), rows, 3)


def test_nothing_in_a_store_is_a_pickle(tmp_path, trajectory):
    write(tmp_path, trajectory)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert file.suffix in {".json", ".safetensors"}
            with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, IndexError, EOFError)):
                pickle.loads(file.read_bytes())


def test_what_the_storage_type_cannot_hold_names_its_example(tmp_path):
    settings = {"rows": 3, "shard_rows": 2, "storage": "float16", "checkpoints": [{}]}
    writer = StoreWriter(tmp_path, settings, {"ids": ["a", "b", "c"]}, lambda: {})
    features, norms = {"adam": torch.tensor([[1.0, 65504.0]])}, {"adam": torch.ones(1)}
    writer.write(0, 1, features, norms)
    with pytest.raises(UserError, match="adam features of example c exceed the range of float16"):
        writer.write(0, 1, {"adam": torch.tensor([[1.0, 1e6]])}, norms)


@pytest.mark.parametrize("storage", StorageType)
def test_gradients_that_the_storage_type_rounds_away_are_told_once(tmp_path, caplog, storage):
    settings = {"rows": 6, "shard_rows": 3, "storage": storage.value, "checkpoints": [{}]}
    writer = StoreWriter(tmp_path, settings, {"ids": list("abcdef")}, lambda: {})
    rows = torch.randn(3, 8192, generator=torch.Generator().manual_seed(0)) / 8192**0.5
    norms = torch.tensor([1e-3, 1e-6, 0.0])  # of rows that are learned: what is left of a gradient
    for shard in (0, 1):
        writer.write(0, shard, {"sgd": rows * norms[:, None]}, {"sgd": norms})
    told = "the sgd features of example b, and of 0 more rows of its shard, are too small for float16"
    assert caplog.text.count("too small") == caplog.text.count(told) == (storage is StorageType.FLOAT16)


def test_a_row_that_is_not_finite_anywhere_is_quarantined(tmp_path):
    settings = {"rows": 4, "shard_rows": 2, "storage": "float16", "checkpoints": [{}, {}]}
    settings |= {"directions": ["sgd", "less"], "dim": 2}
    writer = StoreWriter(tmp_path, settings, {"ids": list("abcd")}, lambda: {})
    for t, shard in writer.missing():
        norms = {d: torch.ones(2) for d in settings["directions"]}
        if t == 1 and shard == 1:
            norms["less"][0] = float("inf")  # in one direction at one checkpoint
        writer.write(t, shard, {d: torch.ones(2, 2) for d in settings["directions"]}, norms)
    assert writer.finish().quarantined.tolist() == [2]


def test_a_store_of_given_rows_is_shown_and_verified_too(tmp_path, capsys):
    settings = {"rows": 2, "shard_rows": 2, "storage": "float16", "directions": ["sgd"], "dim": 2}
    settings["checkpoints"] = [{"step": 0, "learning_rate": 1.0}]
    writer = StoreWriter(tmp_path, settings, {"ids": ["a", "b"], "n_completion_tokens": [1, 2]}, lambda: {})
    writer.write(0, 0, {"sgd": torch.ones(2, 2)}, {"sgd": torch.ones(2)})
    writer.finish()
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "rows         2 (3 completion tokens)" in shown and "every checksum is right" in shown


def collect_there(directory: Path, trajectory, threads: int) -> None:
    torch.set_num_threads(threads)
    collect(small(), make_examples(ROWS), trajectory, directory, ONE_BY_ONE)


def start(directory: Path, trajectory):
    """Collect in another process."""
    return forked.start(collect_there, directory, trajectory, torch.get_num_threads())


def test_a_killed_run_and_its_helper_write_the_bytes_of_an_undisturbed_one(tmp_path, trajectory):
    """Two processes share the shards; one is killed at work, the other finishes alone what both began."""
    expected = collect(small(), make_examples(ROWS), trajectory, tmp_path / "calm", ONE_BY_ONE)
    directory = tmp_path / "shared"
    workers = [start(directory, trajectory) for _ in range(2)]
    try:
        deadline = time.monotonic() + 120
        while len(list(directory.glob("checkpoint-*/*.safetensors"))) < 5 and time.monotonic() < deadline:
            assert all(w.is_alive() for w in workers)
            time.sleep(0.005)
        workers[0].kill()
        done_when_killed = len(list(directory.glob("checkpoint-*/*.safetensors")))
        workers[1].join(120)
        assert workers[1].exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert 5 <= done_when_killed < 2 * ROWS
    assert shards(directory) == shards(tmp_path / "calm")
    assert GradientStore.open(directory).verify() == []
    assert json.loads((directory / "store.json").read_text()) == json.loads(
        (expected.directory / "store.json").read_text()
    )


def test_a_run_killed_alone_goes_on_at_the_first_missing_shard(tmp_path, trajectory):
    collect(small(), make_examples(ROWS), trajectory, tmp_path / "calm", ONE_BY_ONE)
    directory = tmp_path / "killed"
    worker = start(directory, trajectory)
    deadline = time.monotonic() + 120
    while len(list(directory.glob("checkpoint-*/*.safetensors"))) < 5 and time.monotonic() < deadline:
        assert worker.is_alive()
        time.sleep(0.005)
    worker.kill()
    worker.join()
    finished = {
        p: p.stat().st_mtime_ns for p in directory.rglob("*.safetensors") if p.with_suffix(".json").is_file()
    }
    assert 4 <= len(finished) < 2 * ROWS
    with pytest.raises(UserError, match="not finished"):
        GradientStore.open(directory)
    collect(small(), make_examples(ROWS), trajectory, directory, ONE_BY_ONE)
    assert shards(directory) == shards(tmp_path / "calm")
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
