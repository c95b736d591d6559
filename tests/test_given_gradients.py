"""Jobs on gradient stores that are there: the same choice as from the job's own, matched by id, and refused
where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients.test_transfer import write_bergson, write_less
from test_experiment import run

from gtp_exp.errors import UserError
from gtp_exp.gradients.store import GradientStore
from gtp_exp.gradients.transfer import ImportOptions, import_store
from gtp_exp.worker import check_inputs

CHOOSE = ["until=selection", "budget=rows", "budget.amount=8"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def own(outputs):
    """The record of a job that collects, and its stores by split."""
    record = run(outputs, "selector=gtp", *CHOOSE)
    stores = {
        split: GradientStore.open(
            outputs / "cache" / "gradients" / record.stages[f"gradients: {split}"].key / "store"
        )
        for split in ("pool", "target")
    }
    return record, stores


def given(outputs: Path, pool: Path, target: Path | None, *overrides: str, directory: str = "given"):
    node = [f"gradients.pool={pool}", f"gradients.target={'null' if target is None else target}"]
    return run(
        outputs, "selector=gtp", *CHOOSE, "gradients=given", *node, *overrides, directory=outputs / directory
    )


def as_written(folder: Path, kind: str, store: GradientStore, order: torch.Tensor) -> GradientStore:
    """Write a store's plain gradients as another project would, rows in another order, and import them."""
    paths, ids = [], folder / "ids.json"
    for t in range(len(store.learning_rates)):
        matrix = store.features(t, "sgd").rows(order)
        if kind == "less":
            paths.append(write_less(folder / f"p-ckpt{t}-sgd" / "dim256", matrix, torch.float32))
        elif kind == "bergson":
            sizes = {"q": 100, "v": matrix.shape[1] - 100}
            paths.append(write_bergson(folder / f"run{t}", matrix, sizes))
        else:
            folder.mkdir(exist_ok=True, parents=True)
            np.save(folder / f"{t}.npy", matrix.numpy())
            paths.append(folder / f"{t}.npy")
    ids.write_text(json.dumps([store.ids[i] for i in order.tolist()]))
    return import_store(kind, paths, folder / "store", ImportOptions(ids, store.learning_rates))


@pytest.mark.parametrize("kind", ["less", "bergson", "numpy"])
def test_a_store_of_others_gives_the_choice_of_the_jobs_own(own, outputs, tmp_path, kind):
    """The same gradients, in another format and another order of the rows."""
    record, stores = own
    imported = {
        split: as_written(
            tmp_path / split, kind, store, torch.randperm(store.n, generator=torch.Generator().manual_seed(1))
        )
        for split, store in stores.items()
    }
    found = given(outputs, imported["pool"].directory, imported["target"].directory, directory=kind)
    assert found.selection.indices_ids == record.selection.indices_ids
    assert found.selection.weights == record.selection.weights
    assert set(found.stages) == {"gradients: pool", "gradients: target", "selection"}
    assert found.stages["gradients: pool"].seconds == 0


@pytest.mark.parametrize("selector", ["less", "gist", "top_k", "grad_match_omp", "tarot", "round_robin"])
def test_every_selector_of_gradients_reads_given_stores(own, outputs, selector):
    _, stores = own
    expected = (
        run(outputs, f"selector={selector}", *CHOOSE, "selector.target_end_of_turn=1.0")
        if (selector != "grad_match_omp")
        else run(outputs, f"selector={selector}", *CHOOSE)
    )
    found = given(outputs, stores["pool"].directory, stores["target"].directory, f"selector={selector}")
    assert found.selection.indices_ids == expected.selection.indices_ids


def test_a_selection_is_found_again_wherever_the_store_lies(own, outputs, tmp_path):
    _, stores = own
    given(outputs, stores["pool"].directory, stores["target"].directory)
    for split, store in stores.items():
        shutil.copytree(store.directory, tmp_path / split)
    moved = given(outputs, tmp_path / "pool", tmp_path / "target")
    assert moved.stages["selection"].cached
    other = GradientStore.from_arrays(
        tmp_path / "other",
        [stores["target"].features(t, "sgd").rows(torch.arange(stores["target"].n)) * 2 for t in (0, 1)],
        ids=stores["target"].ids,
        learning_rates=stores["target"].learning_rates,
    )
    same_space = as_written(tmp_path / "again", "numpy", stores["pool"], torch.arange(stores["pool"].n))
    assert not given(outputs, same_space.directory, other.directory).stages["selection"].cached


def plain(store: GradientStore, folder: Path, keep: list[int], ids=None, **options) -> Path:
    """Write some rows of a store's plain gradients as a store of arrays."""
    parts = [store.features(t, "sgd").rows(torch.tensor(keep)) for t in range(len(store.learning_rates))]
    rates = store.learning_rates
    return GradientStore.from_arrays(folder, parts, ids=ids, learning_rates=rates, **options).directory


def test_a_pool_without_ids_is_taken_in_the_order_of_its_rows(own, outputs, tmp_path, caplog):
    """Row 3 of the data set is too long for the model; it has a row in such a store all the same."""
    _, stores = own
    pairs = [(f"What is {i} plus 1?", f"{i + 1} " * (3000 if i == 3 else 1)) for i in range(40)]
    lines = [{"id": f"q{i}", "prompt": p, "completion": c} for i, (p, c) in enumerate(pairs)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["dataset=jsonl", f"dataset.files=[{tmp_path / 'pool.jsonl'}]"]
    numbered = plain(stores["pool"], tmp_path / "pool", list(range(40)))
    target = plain(
        stores["target"], tmp_path / "target", list(range(stores["target"].n)), stores["target"].ids
    )
    found = given(outputs, numbered, target, *data)
    assert "gradients.pool has no ids" in caplog.text
    named = plain(stores["pool"], tmp_path / "named", list(range(40)), [line["id"] for line in lines])
    expected = given(outputs, named, target, *data)
    assert found.selection.indices_ids == expected.selection.indices_ids
    short = plain(stores["pool"], tmp_path / "short", list(range(39)))
    with pytest.raises(UserError, match="has 39 rows without ids, and the pool 40; import it with --ids"):
        given(outputs, short, target, *data)


def test_a_target_of_other_rows_stands_for_itself_with_its_subtasks(own, outputs, tmp_path, caplog):
    _, stores = own
    n = stores["target"].n
    labels = ["a" if i < 2 else "b" for i in range(n)]
    pool = plain(stores["pool"], tmp_path / "pool", list(range(40)), stores["pool"].ids)
    target = plain(stores["target"], tmp_path / "target", list(range(n)), subtasks=labels)
    found = given(outputs, pool, target, "selector.target_columns=subtasks")
    assert f"none of the benchmark's {n} target rows: its own {n} rows are the target" in caplog.text
    assert "target" not in found.leakage and "pool" in found.leakage
    known = plain(stores["target"], tmp_path / "known", list(range(n)), stores["target"].ids, subtasks=labels)
    same = given(outputs, pool, known, "selector.target_columns=subtasks")
    assert same.selection.indices_ids == found.selection.indices_ids
    one = given(outputs, pool, target, "selector.target_columns=mean")
    assert one.stages["selection"].key != found.stages["selection"].key
    with pytest.raises(UserError, match="until=validation holds back rows of the benchmark's target"):
        given(outputs, pool, target, "until=validation")


def test_rows_that_validation_holds_back_are_left_out_of_a_given_target(own, outputs):
    _, stores = own
    found = given(outputs, stores["pool"].directory, stores["target"].directory, "until=validation")
    assert found.validation is not None
    assert found.rows["target"].used + found.validation.rows == stores["target"].n


def test_rows_that_are_not_finite_are_passed_over_up_to_the_share(own, outputs, tmp_path):
    _, stores = own
    folder = tmp_path / "in"
    folder.mkdir()
    order = list(range(40))
    for t in (0, 1):
        matrix = stores["pool"].features(t, "sgd").rows(torch.tensor(order)).numpy()
        matrix[7] = np.nan
        np.save(folder / f"{t}.npy", matrix)
    (folder / "ids.txt").write_text("\n".join(stores["pool"].ids) + "\n")
    options = ImportOptions(folder / "ids.txt", stores["pool"].learning_rates)
    import_store("numpy", [folder / "0.npy", folder / "1.npy"], tmp_path / "pool", options)
    n = stores["target"].n
    target = plain(stores["target"], tmp_path / "target", list(range(n)), stores["target"].ids)
    with pytest.raises(UserError, match="1 of 40 pool rows is not finite.*make the store again without them"):
        given(outputs, tmp_path / "pool", target)
    found = given(
        outputs, tmp_path / "pool", target, "gradients.max_quarantined_share=0.1", "budget.amount=39"
    )
    assert stores["pool"].ids[7] not in found.selection.indices_ids and len(found.selection.weights) == 39


def test_rows_that_do_not_match_are_counted_and_the_first_is_named(own, outputs, tmp_path):
    _, stores = own
    pool, target = stores["pool"], stores["target"].directory
    fewer = plain(pool, tmp_path / "fewer", list(range(1, 40)), pool.ids[1:])
    n = stores["target"].n
    aims = plain(stores["target"], tmp_path / "t", list(range(n)), stores["target"].ids)
    told = rf"has 39 rows and the pool 40: '{pool.ids[0]}' of the pool is not in it \(1 missing, 0 extra\)"
    with pytest.raises(UserError, match=told):
        given(outputs, fewer, aims)
    more = plain(pool, tmp_path / "more", [*range(40), 3], [*pool.ids, "stranger"])
    with pytest.raises(UserError, match="'stranger' is in it and not of the pool"):
        given(outputs, more, aims)
    part = plain(stores["target"], tmp_path / "part", [0], stores["target"].ids[:1])
    plain_pool = plain(pool, tmp_path / "plain", list(range(40)), pool.ids)
    with pytest.raises(UserError, match="of the target is not in it"):
        given(outputs, plain_pool, part)
    with pytest.raises(UserError, match="gradients.target is not given"):
        given(outputs, pool.directory, None)
    with pytest.raises(UserError, match="the benchmark aims at the pool itself; leave it out"):
        given(outputs, pool.directory, target, "benchmark.in_domain=true")
    chosen = given(outputs, pool.directory, None, "benchmark.in_domain=true")
    assert len(chosen.selection.weights) == 8


def test_what_a_store_cannot_serve_is_told_before_anything_is_loaded(own, outputs, tmp_path):
    _, stores = own
    pool, n = stores["pool"], stores["target"].n
    sgd = plain(pool, tmp_path / "sgd", list(range(40)), pool.ids)
    aims = plain(stores["target"], tmp_path / "aims", list(range(n)), stores["target"].ids)
    one = GradientStore.from_arrays(tmp_path / "one", np.ones((40, 256), np.float32), ids=pool.ids).directory
    wide = GradientStore.from_arrays(
        tmp_path / "wide",
        [np.ones((40, 8), np.float32)] * 2,
        ids=pool.ids,
        learning_rates=pool.learning_rates,
    ).directory

    def refused(pool: Path, target: Path, **selector: str) -> str:
        node = {
            "_target_": "gtp_exp.gradients.given.GivenGradients",
            "pool": str(pool),
            "target": str(target),
        }
        with pytest.raises(UserError) as caught:
            check_inputs({"gradients": node, "selector": selector, "dataset": {}, "benchmark": {}})
        return str(caught.value)

    less = refused(sgd, aims, direction="less", target_direction="sgd")
    assert f"gradients.pool={sgd} holds the direction sgd, not selector.direction=less; set" in less
    assert "gradients.target" in refused(sgd, aims, direction="sgd", target_direction="adam")
    assert "the pool has 1 checkpoints and the target 2" in refused(one, aims, direction="sgd")
    assert "the pool has 8 columns and the target 256" in refused(wide, aims, direction="sgd")
    assert "different trajectories or sketches" in refused(pool.directory, aims, direction="sgd")
    assert f"gradients.pool: {tmp_path / 'x'} is not a gradient store" in refused(tmp_path / "x", aims)

    for weight in ("0", "balanced"):
        with pytest.raises(UserError, match=f"target_end_of_turn={weight}.*gradients.target holds the end"):
            given(outputs, sgd, aims, f"selector.target_end_of_turn={weight}")
    file = sgd / "checkpoint-00" / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"sgd is damaged \(checkpoint-00/shard-00000.safetensors: SHA-256"):
        given(outputs, sgd, aims, "seed=1")
