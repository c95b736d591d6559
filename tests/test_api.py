"""The Python API: what its documentation shows, the choice that a job makes, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from small_models import make_trajectory
from toy import TOY

import gtp_exp
from gtp_baselines.bm25 import BM25
from gtp_baselines.craig import CRAIG
from gtp_baselines.gist import GIST
from gtp_baselines.grad_match_omp import GradMatchOMP
from gtp_baselines.less import LESS
from gtp_baselines.top_k import TopK
from gtp_exp.api.jobs import run
from gtp_exp.api.search_path import searched_as_well
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.sketch import Sketch, SketchKind
from gtp_exp.gradients.store import GradientStore, StoreWriter
from gtp_exp.gradients.store_command import main as store_command
from gtp_exp.launch import fork_server
from gtp_exp.records.record import RunRecord, State
from gtp_exp.selection.atoms.sketches import Normalise
from gtp_exp.selection.base import Budget, Need, Selection, Selector, Unit, unit_weights
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.omp import OMP
from gtp_exp.training.config import BatchLoss, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(file: Path) -> list[str]:
    return BLOCK.findall(file.read_text(encoding="utf-8"))


def arrays(n=200, dim=24, targets=12, checkpoints=1, seed=0):
    """Random pool and target matrices, one of each per checkpoint."""
    rng = np.random.default_rng(seed)
    pool = [rng.normal(size=(n, dim)).astype(np.float32) for _ in range(checkpoints)]
    target = [(0.5 + rng.normal(size=(targets, dim))).astype(np.float32) for _ in range(checkpoints)]
    return pool, target


def same(one, other) -> bool:
    return torch.equal(one.indices, other.indices) and torch.equal(one.weights, other.weights)


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """The folder in which the documentation has run from top to bottom, and the names that it has defined."""
    folder, names, before = tmp_path_factory.mktemp("docs"), {}, os.getcwd()
    os.chdir(folder)
    try:
        for block in blocks(ROOT / "docs" / "python.md"):
            exec(compile(block, "docs/python.md", "exec"), names)
    finally:
        os.chdir(before)
    return folder, names


# The documentation


def test_the_documentation_runs_as_it_stands(documented):
    folder, names = documented
    assert torch.equal(names["same"].indices, gtp_exp.select(names["pool"], names["target"], 500).indices)
    assert len(names["again"].indices) == 100 and len(names["top"].indices) == 500
    assert names["one_atom_at_a_time"].diagnostics["solver"] == "omp"
    assert names["store"].ids == tuple(names["ids"]) and names["store"].learning_rates == (1e-3, 5e-4)
    assert isinstance(names["record"], RunRecord) and names["record"].state is State.COMPLETE
    assert names["record"].names.selector == "gtp" and names["record"].selection.n_selected == 10
    assert len(names["chosen"].indices) == 5 and names["target_store"].n == 1


def test_the_readmes_example_runs_as_it_stands():
    names = {}
    (block,) = blocks(ROOT / "README.md")
    exec(compile(block, "README.md", "exec"), names)
    assert len(names["chosen"].indices) == 100


def test_results_are_a_table_that_pandas_takes(documented):
    _, names = documented
    frame = pandas.DataFrame(names["frame"])
    assert len(frame) == 1 and frame.selector[0] == "gtp" and frame.state[0] == "complete"
    assert frame.seed[0] == 0 and frame.n_selected[0] == 10 and frame.seconds[0] > 0


def test_the_same_stores_give_the_jobs_own_choice(documented):
    folder, names = documented
    stores = [GradientStore.open(path) for path in folder.glob("outputs/cache/gradients/*/store")]
    target, pool = sorted(stores, key=lambda store: store.n)
    chosen = gtp_exp.select(pool, target, budget=0.05)
    summary = names["record"].selection
    assert tuple(pool.ids[i] for i in chosen.indices.tolist()) == summary.indices_ids
    assert tuple(chosen.weights.tolist()) == summary.weights
    matrices = [[s.features(t, "sgd").rows(torch.arange(s.n)) for t in range(4)] for s in (pool, target)]
    assert same(chosen, gtp_exp.select(*matrices, budget=0.05, learning_rates=pool.learning_rates))


# Importing


def test_the_import_brings_no_torch_and_is_quick():
    code = (
        "import sys, time; began = time.perf_counter(); import gtp_exp; spent = time.perf_counter() - began;"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules; assert spent < 0.2, spent;"
        "gtp_exp.UserError; assert 'torch' not in sys.modules; print(*gtp_exp.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= set(dir(gtp_exp))
    assert all(callable(getattr(gtp_exp, name)) for name in done.stdout.split())


def test_neither_jobs_nor_results_need_torch_in_this_process():
    code = "import sys, gtp_exp; gtp_exp.run, gtp_exp.results, gtp_exp.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        _ = gtp_exp.selekt
    with pytest.raises(gtp_exp.UserError, match="does not exist"):
        gtp_exp.results("no/such/folder")


# Arrays of every kind


def test_every_kind_of_array_gives_the_same_choice(tmp_path):
    (pool,), (target,) = arrays()
    expected = gtp_exp.select(pool, target, budget=20)
    np.save(tmp_path / "pool.npy", pool)
    kinds = [
        torch.from_numpy(pool),
        torch.from_numpy(pool).requires_grad_(),
        pool.astype(np.float64),
        pool.astype(">f4"),
        np.asfortranarray(pool),
        pandas.DataFrame(pool),
        np.load(tmp_path / "pool.npy", mmap_mode="r"),
        [pool],
        GradientStore.from_arrays(tmp_path / "store", pool),
    ]
    before = pool.copy()
    for kind in kinds:
        assert same(expected, gtp_exp.select(kind, target, budget=20)), type(kind)
    assert np.array_equal(pool, before)


def test_a_memory_map_is_never_read_as_a_whole(tmp_path, monkeypatch):
    from gtp_exp.gradients.arrays import ArrayRows

    (pool,), (target,) = arrays(n=9000, dim=8)
    np.save(tmp_path / "pool.npy", pool)
    largest, read = 0, ArrayRows._tensor

    def watched(self, part):
        nonlocal largest
        largest = max(largest, len(part))
        return read(self, part)

    monkeypatch.setattr(ArrayRows, "_tensor", watched)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    streamed = gtp_exp.select(mapped, target, 20, gtp_exp.GTP(memory_gib=0, chunk_rows=512))
    assert 0 < largest <= 4096
    assert same(streamed, gtp_exp.select(pool, target, 20, gtp_exp.GTP(memory_gib=0, chunk_rows=512)))


@pytest.mark.parametrize("selector", [TopK(), LESS(), GIST(rank=4), GradMatchOMP(), CRAIG()])
def test_any_selector_that_reads_gradients_will_do(selector):
    pool, target = arrays(checkpoints=2)
    chosen = gtp_exp.select(pool, target, budget=10, selector=selector)
    assert len(chosen.indices.unique()) == 10 and len(chosen.scores) == 200


def test_the_pools_own_mean_is_the_target_in_domain():
    pool, _ = arrays(checkpoints=2)
    assert len(gtp_exp.select(pool, None, budget=0.1).indices) == 20


def test_learning_rates_weigh_the_checkpoints():
    pool, target = arrays(checkpoints=2)
    first = gtp_exp.select(pool[0], target[0], 10, TopK())
    assert same(first, gtp_exp.select(pool, target, 10, TopK(), learning_rates=[1, 0]))
    assert not same(first, gtp_exp.select(pool, target, 10, TopK(), learning_rates=[1, 1]))


def test_subtasks_group_the_target_rows():
    (pool,), (target,) = arrays()
    grouped = gtp_exp.GTP(target_columns="subtasks")  # an option by its name
    chosen = gtp_exp.select(pool, target, 10, grouped, subtasks=["a", "b"] * 6)
    assert chosen.diagnostics["target_columns"] == ["a", "b"]


def test_rows_in_a_stores_quarantine_are_passed_over(tmp_path):
    (pool,), (target,) = arrays()
    store = GradientStore.from_arrays(tmp_path / "store", pool)
    best = int(gtp_exp.select(store, target, 1).indices[0])
    store.about = {**store.about, "quarantined": [best]}
    chosen = gtp_exp.select(store, target, 10)
    assert best not in chosen.indices and chosen.diagnostics["quarantined_ids"] == [f"row-{best}"]


# Options of the wrong type


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: gtp_exp.GTP(ridges=1.0), r"selector.ridges should be a list, not 1.0"),
        (lambda: gtp_exp.GTP(ridges=[1.0, "3"]), r"selector.ridges\[1\] should be a number, not '3'"),
        (lambda: gtp_exp.GTP(round_rows="12"), "selector.round_rows should be int, not '12'"),
        (lambda: gtp_exp.GTP(round_rows=12.0), "selector.round_rows should be int, not 12.0"),
        (lambda: gtp_exp.GTP(ridge=float("nan")), "selector.ridge should be a finite number"),
        (lambda: gtp_exp.GTP(normalise="atoms"), r"normalise should be one of \['none', 'atom'"),
        (lambda: gtp_exp.GTP(solver="opm"), r"'opm' is no solver; give one of cosamp, omp, .*OMP\(\) of"),
        (lambda: gtp_exp.GTP(solver=OMP), r"OMP is a class; give an object, OMP\(\)"),
        (lambda: gtp_exp.GTP(solver=3), "3 is no solver"),
        (lambda: CoSaMP(prune_stages="4"), "selector.solver.prune_stages should be int"),
        (lambda: CRAIG(part_rows="9"), "selector.part_rows should be int"),
        (lambda: Sketch(kind="nune"), "sketch.kind should be one of"),
        (
            lambda: GradientConfig(directions="sgd"),
            r"gradients.directions should be a list, as in \[sgd\], not 'sgd'",
        ),
        (lambda: Budget("row", 5), "budget.unit should be one of"),
        (lambda: TrainConfig(epochs="3"), "train.epochs should be int, not '3'"),
        (lambda: TrainConfig(loss="example"), r"train.loss should be one of \['example_mean', 'token_mean'"),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_by_its_name(build, words):
    with pytest.raises(gtp_exp.UserError, match=words):
        build()


def test_options_are_taken_as_yaml_gives_them_and_as_objects():
    by_word = gtp_exp.GTP(solver="omp", normalise="none", ridges=(1, np.float32(3.0)), folds=np.int64(3))
    assert by_word == gtp_exp.GTP(solver=OMP(), normalise=Normalise.NONE, ridges=[1.0, 3.0], folds=3)
    assert type(by_word.folds) is int and type(by_word.ridges[1]) is float
    assert Sketch(kind="none") == Sketch(SketchKind.NONE)
    assert GradientConfig(directions=["sgd"], sketch=Sketch(dim=8)).directions == [Direction.SGD]
    assert Budget("rows", 5) == Budget(Unit.ROWS, 5)
    assert TrainConfig(loss="token_mean", learning_rate=1) == TrainConfig(
        loss=BatchLoss.TOKEN_MEAN, learning_rate=1.0
    )


def test_a_selector_may_hold_what_yaml_cannot():
    (pool,), (target,) = arrays()
    held = Doubled(change=lambda scores: -scores)
    assert not same(gtp_exp.select(pool, target, 5, held), gtp_exp.select(pool, target, 5, Doubled()))


@dataclass(frozen=True)
class Doubled(Selector):
    """Rank by twice the first column, and by what a function makes of it."""

    factor: float = 2.0
    change: Callable[[torch.Tensor], torch.Tensor] = torch.clone

    needs = frozenset({Need.GRADIENTS})

    def select(self, problem):
        scores = self.change(
            self.factor
            * problem.pool_gradients.features(0, "sgd").rows(torch.arange(problem.pool_gradients.n))[:, 0]
        )
        chosen = problem.budget.take(scores.argsort(descending=True), problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), scores)


# Input that cannot be used

POOL, TARGET = (each[0] for each in arrays())


def spoiled(value, row=7):
    matrix = POOL.copy()
    matrix[row, 1] = value
    return matrix


@pytest.mark.parametrize(
    ("pool", "target", "options", "words"),
    [
        (spoiled(np.nan), TARGET, {}, r"example 'row-7' is not finite \(row 7 of the pool, checkpoint 0\)"),
        ([POOL, spoiled(np.inf)], [TARGET] * 2, {}, "'row-7' is not finite .*checkpoint 1"),
        (np.where(POOL == POOL[3, 1], 1e300, POOL.astype(np.float64)), TARGET, {}, "is not finite"),
        (POOL, TARGET * np.nan, {}, "'target-0' is not finite .*row 0 of the target"),
        (POOL, TARGET[:0], {}, r"the target has the shape \[0, 24\], so it is empty"),
        (POOL[:0], TARGET, {}, r"the pool has the shape \[0, 24\], so it is empty"),
        (POOL, [], {}, "the target is an empty list"),
        (POOL, TARGET[:, :5], {}, "24 columns and the target 5"),
        ([POOL, POOL], TARGET, {}, "2 checkpoints and the target 1"),
        ([POOL, POOL[:5]], [TARGET] * 2, {}, r"pool\[1\] has the shape \[5, 24\]"),
        (np.stack([POOL, POOL]), TARGET, {}, "a list of one .* array per checkpoint"),
        (POOL[0], TARGET, {}, "give an array"),
        ("pool.npy", TARGET, {}, "is a text, not an array"),
        (POOL.tolist(), TARGET, {}, r"pool\[0\] is a list"),
        (POOL > 0, TARGET, {}, "bool values"),
        (POOL.astype(str), TARGET, {}, "dense array of real numbers"),
        (torch.from_numpy(POOL).to_sparse(), TARGET, {}, "dense array"),
        (np.ma.masked_less(POOL, 0), TARGET, {}, "masked"),
        (spoiled(1e30), TARGET, {}, "example 'row-7' is too large for float32"),
        (POOL, TARGET * 1e25, {}, "example 'target-0' is too large for float32"),
        (POOL, TARGET * 0, {}, "the target gradient is zero"),
        (POOL, TARGET * 0, {"selector": TopK()}, "the target gradient is zero"),
        (POOL * 0, TARGET, {"selector": TopK()}, "every candidate's gradient is zero"),
        (POOL, TARGET, {"budget": 10**400}, "chooses nothing"),
        (
            POOL,
            TARGET,
            {"budget": 201},
            "201 rows is more than the 200 candidates; give at most 200, or a share",
        ),
        (POOL, TARGET, {"budget": 0}, "budget=0 chooses nothing; give a number of rows"),
        (POOL, TARGET, {"budget": -1}, "chooses nothing"),
        (POOL, TARGET, {"budget": 1.5}, "budget=1.5 is a float and above 1, .*; 5% is 0.05"),
        (POOL, TARGET, {"budget": 50.0}, "for 50 rows give the int 50"),
        (POOL * 0, TARGET, {}, "every candidate's gradient is zero, .*; check how they were computed"),
        (POOL, TARGET, {"budget": float("nan")}, "chooses nothing"),
        (POOL, TARGET, {"budget": True}, "budget=True is not a number"),
        (POOL, TARGET, {"budget": "5%"}, "budget='5%' is not a number"),
        (POOL, TARGET, {"ids": ["a"] * 200}, "id 'a' occurs twice: rows 0 and 1"),
        (POOL, TARGET, {"ids": ["a"]}, "ids has the length 1, not 200"),
        (POOL, TARGET, {"seed": -1}, "seed=-1 must lie between"),
        (POOL, TARGET, {"seed": 0.5}, "seed=0.5 must lie between"),
        (POOL, TARGET, {"learning_rates": [1, 2]}, "a list of 1 number, one for each"),
        (POOL, TARGET, {"learning_rates": [0]}, "cannot weight them"),
        (POOL, TARGET, {"subtasks": ["a"]}, "subtasks has the length 1, not 12"),
        (POOL, TARGET, {"selector": gtp_exp.GTP}, r"is a class; give an object, GTP\(\)"),
        (POOL, TARGET, {"selector": "gtp"}, "is no selector"),
        (POOL, TARGET, {"selector": BM25()}, "BM25 does not choose by gradients alone"),
        (POOL, TARGET, {"selector": gtp_exp.GTP(direction="adm")}, "adm is not one of sgd, adam, less"),
        (POOL, TARGET, {"selector": gtp_exp.GTP(target_end_of_turn=0.5)}, "turn=0.5: the target holds"),
        (POOL, TARGET, {"selector": LESS(target_end_of_turn="balanced")}, "balanced: .*; set it to 0.0, or"),
        (POOL, TARGET, {"selector": Doubled(factor="2")}, "selector.factor should be a number, not '2'"),
    ],
)
def test_input_that_cannot_be_used_is_refused(pool, target, options, words):
    with pytest.raises(gtp_exp.UserError, match=words):
        gtp_exp.select(pool, target, **{"budget": 5, **options})


def test_an_option_that_cannot_be_used_is_refused_where_the_selector_is_made():
    with pytest.raises(gtp_exp.UserError, match=r"similarity should be one of \['dot', 'cosine'\]"):
        TopK(similarity="angle")


def test_a_row_that_is_not_finite_is_told_by_its_number_in_a_large_pool_too():
    pool = np.ones((5000, 3), dtype=np.float32)
    pool[4500, 1] = np.nan
    with pytest.raises(gtp_exp.UserError, match=r"example 'row-4500' is not finite \(row 4500 of the pool"):
        gtp_exp.select(pool, pool[:2], 5)


def test_what_a_store_knows_is_not_given_again(tmp_path):
    store = GradientStore.from_arrays(tmp_path / "store", POOL)
    for options in ({"ids": ["a"] * 200}, {"learning_rates": [1]}):
        with pytest.raises(gtp_exp.UserError, match="the gradient store has its own"):
            gtp_exp.select(store, TARGET, 5, **options)


# Stores


def test_a_store_of_arrays_is_a_store_like_any_other(tmp_path, capsys):
    pool, _ = arrays(n=2100, checkpoints=2)
    store = GradientStore.from_arrays(tmp_path, pool, learning_rates=[2.0, 1.0], direction="adam")
    assert store.directions == ("adam",) and store.learning_rates == (2.0, 1.0) and not store.verify()
    assert torch.equal(store.features(1, "adam").rows(torch.arange(2100)), torch.from_numpy(pool[1]))
    norms = torch.linalg.vector_norm(torch.from_numpy(pool[0]), dim=1)
    assert torch.allclose(store.norms(0, "adam"), norms)
    assert store_command([str(tmp_path)]) == 0 and "every checksum is right" in capsys.readouterr().out
    with pytest.raises(gtp_exp.UserError, match="holds the directions|but the store holds adam"):
        gtp_exp.select(store, [TARGET, TARGET], 5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_half_width_numbers_stay_as_they_are(tmp_path, dtype):
    store = GradientStore.from_arrays(tmp_path, torch.from_numpy(POOL).to(getattr(torch, dtype)))
    assert store.dtype == getattr(torch, "float32" if dtype == "float64" else dtype)


def test_the_same_arrays_again_write_nothing_and_others_are_refused(tmp_path, monkeypatch):
    GradientStore.from_arrays(tmp_path, POOL)
    with pytest.raises(gtp_exp.UserError, match="holds gradients with other settings"):
        GradientStore.from_arrays(tmp_path, POOL + 1)
    monkeypatch.setattr(StoreWriter, "write", None)
    assert GradientStore.from_arrays(tmp_path, POOL).n == 200
    with pytest.raises(gtp_exp.UserError, match="other settings .rows_sha256."):
        GradientStore.from_arrays(tmp_path, POOL, ids=[f"other-{i}" for i in range(200)])
    with pytest.raises(gtp_exp.UserError, match="other settings .rows_sha256."):
        GradientStore.from_arrays(tmp_path, POOL, subtasks=["one"] * 200)
    assert GradientStore.open(tmp_path).verify() == []


@pytest.mark.parametrize(
    "name", ["checkpoint-500/model.safetensors", "checkpoint-00/optimizer.pt", "notes.txt", "checkpoint-x"]
)
def test_a_folder_with_files_of_others_becomes_no_store(tmp_path, name):
    precious = tmp_path / name
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("mine")
    with pytest.raises(
        gtp_exp.UserError, match=f"holds {name.partition('/')[0]}, which belongs to no gradient store"
    ):
        GradientStore.from_arrays(tmp_path, POOL)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("matrix", "options", "words"),
    [
        (spoiled(np.nan), {}, "'row-7' is not finite"),
        (POOL, {"ids": ["a", "b"]}, "ids has the length 2, not 200"),
        (POOL, {"ids": ["a"] * 200}, "occurs twice"),
        (POOL, {"direction": "adm"}, "'adm' is not one of sgd, adam, less"),
        (POOL, {"learning_rates": [1, 1]}, "a list of 1 number, one for each"),
        ("pool.npy", {}, "is a text"),
    ],
)
def test_a_store_refuses_what_select_refuses(tmp_path, matrix, options, words):
    with pytest.raises(gtp_exp.UserError, match=words):
        GradientStore.from_arrays(tmp_path / "store", matrix, **options)
    assert not (tmp_path / "store").exists()


def test_stores_of_different_sketches_do_not_go_together(tmp_path):
    pool = GradientStore.from_arrays(tmp_path / "pool", POOL)
    target = GradientStore.from_arrays(tmp_path / "target", TARGET)
    target.about = {**target.about, "seed": 1}
    with pytest.raises(gtp_exp.UserError, match=r"different trajectories or sketches \(seed\)"):
        gtp_exp.select(pool, target, 5)


# Jobs


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=0,1"], "run takes one job"),
        (["-m", "seed=0,1"], "run takes one job"),
        (["experiment=demo"], "is a multirun"),
        (["--help"], "an option of the command line"),
        (["sed=1"], "sed is unknown; did you mean seed"),
        (["selector=nope"], "Could not find 'selector/nope'"),
        (["selector=../gtp"], "without '..'"),
        (["budget=12"], "12 is no option of budget; give budget=5pct .* budget=rows budget.amount=12"),
        (["budget=5e-3"], "5e-3 is no option of budget; .* budget.amount=100 for a number of rows"),
        (["+model@selection_model=[tiny,.5]"], ".5 is no option of model; give the name of one"),
        (["selector/solver=null"], "null is no option of selector/solver"),
        (["hydra/launcher=True"], "True is no option of hydra/launcher"),
        (["launch.threads=0"], "launch.threads=0 must be at least 1"),
        ("seed=1", "must be a list of texts"),
        ({"seed": 1}, "must be a list of texts"),
    ],
)
def test_a_job_that_cannot_be_composed_is_refused(tmp_path, monkeypatch, overrides, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gtp_exp.UserError, match=words):
        run(overrides)
    assert not GlobalHydra.instance().is_initialized() and not HydraConfig.initialized()
    assert not list(tmp_path.rglob("results.json"))


def test_several_threads_may_start_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(seed):
        with pytest.raises(gtp_exp.UserError, match="launch.threads=0 must be at least 1"):
            run([f"seed={seed}", "launch.threads=0"])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(refused, range(8)))
    assert not GlobalHydra.instance().is_initialized() and not HydraConfig.initialized()


def test_a_failed_job_raises_the_workers_own_words_and_leaves_hydra_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        with pytest.raises(gtp_exp.UserError, match="41 rows is more than the 40 candidates"):
            run([*TOY, "budget=rows", "budget.amount=41"], config_dir=ROOT / "tests" / "conf")
        assert GlobalHydra.instance().hydra is mine and not HydraConfig.initialized()
    (row,) = gtp_exp.results("outputs/runs")
    assert row["state"] == "failed" and "41 rows" in row["error"] and row["n_selected"] is None
    (tmp_path / "outputs" / "runs" / "torn").mkdir()
    (tmp_path / "outputs" / "runs" / "torn" / "results.json").write_text("{")
    rows = gtp_exp.results(["outputs/runs"])
    assert [row["state"] for row in rows] == ["failed", "unreadable"] and rows[0].keys() == rows[1].keys()


@pytest.mark.parametrize("name", ["m\u00f6 in", "a(b), c", "it's"])
def test_a_folder_of_options_may_have_any_name(tmp_path, name):
    (tmp_path / name / "selector").mkdir(parents=True)
    (tmp_path / name / "selector" / "mine.yaml").write_text("defaults: [gtp, _self_]\nridge: 0.7\n")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [searched_as_well(tmp_path / name), "selector=mine"])
    assert config.selector.ridge == 0.7
    (job,) = compose_jobs(["selector=mine", "--config-dir", str(tmp_path / name)], str(ROOT / "conf"))
    assert job["config"]["selector"]["ridge"] == 0.7


@pytest.mark.skipif(sys.platform != "linux", reason="a server forks on Linux only")
def test_the_jobs_of_one_process_are_forked_by_one_that_has_imported_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    job, servers = [*TOY, "selector=random", "budget=rows", "until=selection"], []
    for amount in (3, 4):
        record = run([*job, f"budget.amount={amount}"], config_dir=ROOT / "tests" / "conf")
        assert record.selection.n_selected == amount
        assert fork_server._current is not None and fork_server._current.job.returncode == 0
        servers.append(fork_server._current.process.pid)
    assert servers[0] == servers[1]


# A model of the caller's own


ROWS = [{"prompt": f"What is {i} plus 2?", "completion": f"{i + 2}", "id": f"sum-{i}"} for i in range(6)]


@pytest.mark.parametrize("lora", [True, False])
def test_collected_gradients_are_those_of_the_model_as_it_is(tiny, lora, tmp_path):
    from gtp_exp.data.examples import Example, Message
    from gtp_exp.data.tokenization import tokenize
    from gtp_exp.gradients.checkpoints import trainable_parameters
    from gtp_exp.model.loss import Reduction, reference_gradients

    model = tiny.load_trainable(seed=0).model if lora else tiny.load().model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    template = tiny.tokenizer.chat_template
    settings = GradientConfig(directions=[Direction.SGD], sketch=Sketch(kind=SketchKind.NONE))
    store = gtp_exp.collect(model, tiny.tokenizer, ROWS, tmp_path / "store", settings=settings)
    assert store.ids == tuple(row["id"] for row in ROWS) and store.directions == ("sgd",)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert tiny.tokenizer.chat_template == template

    messages = (Message("user", ROWS[2]["prompt"]), Message("assistant", ROWS[2]["completion"]))
    (row,) = tokenize([Example("sum-2", messages)], tiny.tokenizer, max_length=256).examples
    parameters = trainable_parameters(model)
    expected = reference_gradients(model, parameters, row, Reduction.MEAN)
    flat = torch.cat([expected[name].flatten() for name in parameters])
    found = store.features(0, "sgd").rows(torch.tensor([2]))[0].float()
    assert torch.linalg.vector_norm(found - flat) < 2e-3 * torch.linalg.vector_norm(flat)


def test_no_gradients_are_collected_in_inference_mode(tiny):
    model = tiny.load_trainable(seed=0).model
    with torch.inference_mode(), pytest.raises(gtp_exp.UserError, match="call collect outside of it"):
        gtp_exp.collect(model, tiny.tokenizer, ROWS)


def test_rows_without_a_completion_are_refused_by_what_they_lack(tiny):
    model = tiny.load_trainable(seed=0).model
    for rows, words in [
        ([], "rows is empty"),
        ("text", "must be a list of dicts"),
        ([{"text": "a"}], "fit no known form"),
        ([{"prompt": "a", "completion": ""}], "without a completion"),
        ([ROWS[0], ROWS[0]], "id 'sum-0' occurs twice"),
        ((ROWS[0] for _ in range(2)), "id 'sum-0' occurs twice"),
        ([{"prompt": "a" * 300, "completion": "b"}], "raise max_length=256"),
    ]:
        with pytest.raises(gtp_exp.UserError, match=words):
            gtp_exp.collect(model, tiny.tokenizer, rows, max_length=256)
    for options, words in [
        ({"path": __file__}, "is a file, and a store is a folder"),
        ({"checkpoints": "checkpoint-0"}, "checkpoints='checkpoint-0' is one path"),
        ({"settings": {"directions": ["sgd"]}}, "settings is a dict"),
    ]:
        with pytest.raises(gtp_exp.UserError, match=words):
            gtp_exp.collect(model, tiny.tokenizer, ROWS, **options)
    with pytest.raises(gtp_exp.UserError, match="read the moments of a warm-up"):
        gtp_exp.collect(model, tiny.tokenizer, ROWS, settings=GradientConfig())
    with pytest.raises(gtp_exp.UserError, match="no trainable parameter"):
        gtp_exp.collect(model.requires_grad_(False), tiny.tokenizer, ROWS)


def test_checkpoints_of_a_warm_up_are_taken_when_given(tiny, tmp_path):
    model = tiny.load_trainable(seed=0).model
    trajectory = make_trajectory(model, tmp_path)
    folders = [checkpoint.directory for checkpoint in trajectory]
    settings = GradientConfig(directions=[Direction.SGD, Direction.ADAM], sketch=Sketch(dim=64))
    store = gtp_exp.collect(model, tiny.tokenizer, ROWS, checkpoints=folders, settings=settings)
    assert store.learning_rates == (0.1, 0.05) and store.directions == ("sgd", "adam")
