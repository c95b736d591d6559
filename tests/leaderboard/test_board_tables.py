"""What may be averaged, what ranks, what is called better, and what is said when nothing can be."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from leaderboard_runs import record, sweep

from gtp_exp.errors import UserError
from gtp_exp.leaderboard.baseline import is_baseline
from gtp_exp.leaderboard.board import is_choosing, task_changes
from gtp_exp.leaderboard.comparability import Row, group
from gtp_exp.leaderboard.metrics import HEADLINE, headline_mean, metric_named
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.scoring import check_metric, score
from gtp_exp.leaderboard.verdict import sentences
from gtp_exp.records.record import StageCost


def as_runs(records):
    return [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), record) for i, record in enumerate(records)]


def tables(records, beside=()):
    return group(as_runs(records), beside=beside).tables


def board(records, metric="nats_per_token", baseline="random", beside=()):
    (table,) = tables(records, beside)
    return score(table, metric=metric, baseline=baseline)


def line(board, label, budget="5pct"):
    return next(li for li in board.lines if li.row.label == label and li.row.budget == budget)


# Comparability


def test_seeds_of_equal_settings_are_one_row():
    (table,) = tables([record(seed=s) for s in range(3)])
    (row,) = table.rows
    assert [run.record.seed for run in row.runs] == [0, 1, 2] and row.label == "gtp"


def test_selectors_and_budgets_share_a_table():
    (table,) = tables([record(s, budget=b) for s in ("gtp", "random") for b in ("1pct", "5pct")])
    assert {(row.label, row.budget) for row in table.rows} == {
        *(("gtp", "1pct"), ("gtp", "5pct"), ("random", "1pct"), ("random", "5pct"))
    }


def test_another_precision_found_by_another_machine_splits_the_table():
    other = replace(record(seed=1), model={**record().model, "dtype": "bfloat16"})
    found = tables([record(seed=0), other])
    assert len(found) == 2 and all("model.found.dtype" in table.differing for table in found)


@pytest.mark.parametrize("what", ["pool", "target", "sorting"])
def test_data_that_was_edited_between_the_runs_splits_the_table(what):
    def edited(run, content):
        if what == "pool":
            return replace(run, pool=replace(run.pool, content=content))
        return replace(run, rows={**run.rows, what: replace(run.rows[what], content=content)})

    found = tables([edited(record(seed=s), "old" if s < 2 else "new") for s in range(4)])
    assert [[run.record.seed for run in table.runs] for table in found] == [[0, 1], [2, 3]]
    assert [table.differing for table in found] == [{f"content of {what}": t} for t in ("old", "new")]


def read_beside(run, **read):
    return replace(run, selection=replace(run.selection, read_beside_rows=read))


def test_a_list_of_rows_that_was_edited_between_the_runs_makes_another_row():
    runs = [read_beside(record("given", s), list="old" if s < 2 else "new") for s in range(4)]
    (table,) = tables(runs)
    assert sorted([run.record.seed for run in row.runs] for row in table.rows) == [[0, 1], [2, 3]]
    assert all("[found.list=" in row.label for row in table.rows)
    same = [read_beside(record("given", s), list="old") for s in range(3)]
    older = record("given", 3)  # its record does not tell
    (table,) = tables([*same, older])
    assert [len(row.runs) for row in table.rows] == [4] and table.rows[0].label == "given"


def test_data_that_its_own_seed_decides_may_differ_between_seeds():
    runs = [record(seed=s, config={"dataset": {"rows": 1000, "seed": s}}) for s in range(3)]
    runs = [replace(run, pool=replace(run.pool, content=f"c{run.seed}")) for run in runs]
    (table,) = tables(runs)
    assert len(table.rows) == 1


def test_another_selection_model_of_the_same_settings_splits_the_table():
    runs = [replace(record(seed=s), selection_model={"weights": f"w{s}", "dtype": "f"}) for s in (0, 1)]
    assert [set(table.differing) for table in tables(runs)] == [{"selection_model.found.weights"}] * 2


@pytest.mark.parametrize("key", ["model", "dataset", "gradients", "train", "benchmark"])
def test_any_other_setting_that_differs_splits_the_table_and_is_named(key):
    found = tables([record(seed=0), record(seed=1, config={key: {"changed": True}})])
    assert len(found) == 2
    assert all(f"{key}.changed" in table.differing for table in found)
    assert {len(row.runs) for table in found for row in table.rows} == {1}


def told(run):
    """A run whose record tells the content of both tasks."""
    return replace(run, rows={**run.rows, "roman": run.rows["sorting"]})


def elsewhere(run, **paths):
    """The same run from files in another place, under the name of another option."""
    return replace(
        run, config={**run.config, **paths}, names=replace(run.names, model="hub", dataset="jsonl")
    )


def test_where_rows_and_weights_lie_makes_no_difference():
    here = {
        "model": {
            "source": "hub",
            "name_or_path": "m",
            "precision": "auto",
            "lora": {"r": 8, "dropout": 0.0},
        },
        "dataset": {"_target_": "gtp_exp.data.sources.jsonl.Jsonl", "files": ["pool.jsonl"], "rows": None},
        "benchmark": {"name": "own", "test": "test.jsonl", "test_rows": 9},
    }
    there = {
        "model": {**here["model"], "name_or_path": "/elsewhere/m", "precision": "fp32"},
        "dataset": {"_target_": "gtp_exp.data.sources.hub.Hub", "path": "./pool.jsonl", "split": "train"},
        "benchmark": {"name": "own", "test": "/data/test.jsonl", "test_rows": 9},
    }
    first = [told(record("random", seed=s, config=here)) for s in (0, 1)]
    (table,) = tables([*first, *(elsewhere(told(record("gtp", seed=s)), **there) for s in (0, 1))])
    assert [(row.label, len(row.runs)) for row in table.rows] == [("gtp", 2), ("random", 2)]
    assert not table.differing


def test_the_place_of_a_test_counts_where_a_record_does_not_tell_the_content_of_every_task():
    runs = [record(seed=s, config={"benchmark": {"name": "own", "test": f"{s}.jsonl"}}) for s in (0, 1)]
    assert len(tables(runs)) == 2 and len(tables(map(told, runs))) == 1


def test_a_gradient_store_counts_by_its_content_and_not_by_its_place():
    def given(seed, place, key):
        run = record(seed=seed, config={"gradients": {"pool": f"{place}/pool", "target": f"{place}/target"}})
        cost = StageCost(key, 0.0, True)
        return replace(run, stages={**run.stages, "gradients: pool": cost, "gradients: target": cost})

    (table,) = tables([given(0, "here", "a"), given(1, "there", "a")])
    assert [len(row.runs) for row in table.rows] == [2]
    found = tables([given(0, "here", "a"), given(1, "there", "b")])
    assert [set(table.differing) for table in found] == [{"gradients.pool", "gradients.target"}] * 2


def test_other_rows_from_another_place_are_named_by_the_place():
    here, there = (
        record(seed=s, config={"dataset": {"files": [f"{s}.jsonl"], "rows": None}}) for s in (0, 1)
    )
    found = tables([here, replace(there, pool=replace(there.pool, content="other"))])
    assert [set(table.differing) for table in found] == [{"dataset.files"}] * 2


@pytest.mark.parametrize("what", ["weights", "chat_template", "dtype", "code"])
def test_another_model_of_the_same_settings_is_another_model(what):
    other = replace(record(seed=1), model={**record().model, what: "other"})
    assert len(tables([record(seed=0), other])) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"eval_batch_size": 4},
        {"train": {"lr": 1e-4, "epochs": 3, "micro_batch_size": 2}},
        {"gradients": {"dim": 1024, "seed": 0, "token_budget": 64, "shard_rows": 8}},
        {"gradients": {"dim": 1024, "seed": 0, "warmup": {"micro_batch_size": 2}}},
        {"selector": {"_target_": "gtp_baselines.gtp", "chunk_rows": 16, "batch_size": 2}},
    ],
)
def test_what_fits_a_machines_memory_makes_no_difference(change):
    (table,) = tables([record(seed=0), record(seed=1, config=change)])
    assert len(table.rows) == 1 and not table.differing


@pytest.mark.parametrize("key", ["train", "gradients.warmup"])
def test_the_size_of_a_pass_counts_where_dropout_draws_masks_for_it(key):
    def run(seed, size):
        group = {"train": {"train": size}, "gradients.warmup": {"gradients": {"seed": 0, "warmup": size}}}[
            key
        ]
        return record(seed=seed, config={"model": {"lora": {"dropout": 0.1}}, **group})

    found = tables([run(0, {"micro_batch_size": 2}), run(1, {"micro_batch_size": 4})])
    assert [set(table.differing) for table in found] == [{f"{key}.micro_batch_size"}] * 2


def test_the_number_of_processes_counts_where_each_draws_masks_of_dropout():
    def run(seed, dropout, **launch):
        model = {"model": {"hub_id": "tiny", "lora": {"dropout": dropout}}}
        return record(seed=seed, config={**model, "launch": launch})

    (table,) = tables([run(0, 0.0, num_processes=1), run(1, 0.0, num_processes=2)])
    assert len(table.rows) == 1 and not table.differing
    (table,) = tables([run(0, 0.1), run(1, 0.1, num_processes=1)])  # earlier records do not tell it
    assert len(table.rows) == 1 and not table.differing
    found = tables([run(0, 0.1, num_processes=1), run(1, 0.1, num_processes=2)])
    assert [dict(table.differing) for table in found] == [{"launch.num_processes": n} for n in "12"]


def test_a_users_selector_is_told_by_every_setting():
    runs = [record(seed=s, config={"selector": {"_target_": "mine.Own", "batch_size": s}}) for s in (0, 1)]
    (table,) = tables(runs)
    assert len(table.rows) == 2


def test_a_table_heading_gives_a_groups_name_for_its_many_keys():
    found = tables(
        [
            record(),
            record(seed=1, names={"model": "qwen"}, config={"model": {"hub_id": "q", "lora": {"r": 64}}}),
        ]
    )
    assert {table.label for table in found} == {
        *("skills_target (model=smollm2_135m)", "skills_target (model=qwen)")
    }
    assert all("model.lora.r" in table.differing for table in found)


def test_a_tasks_own_name_stands_for_its_files_where_it_tells_the_tables_apart():
    def files(name, rows=9):
        return {"benchmark": {"name": name, "test": f"{name}/test.jsonl", "test_rows": rows}}

    found = tables([record(config=files("creak")), record(config=files("ecqa"))])
    assert {t.label for t in found} == {f"skills_target (benchmark.name={n})" for n in ("creak", "ecqa")}
    assert all("benchmark.test" in table.differing for table in found)
    found = tables([record(config=files("creak")), record(config=files("creak", 5))])
    assert {t.label for t in found} == {f"skills_target (benchmark.test_rows={n})" for n in (9, 5)}
    found = tables([record(config=files(*task)) for task in (("creak",), ("ecqa",), ("ecqa", 5))])
    assert len({table.label for table in found}) == 3


def test_benchmarks_are_tables_of_their_own():
    found = tables([record(), record(benchmark="mmlu")])
    assert [table.benchmark for table in found] == ["mmlu", "skills_target"]
    assert all(not table.differing for table in found)


@pytest.mark.parametrize("key", ["tracking", "launch", "outputs", "until"])
def test_where_a_run_reports_and_how_far_it_goes_makes_no_difference(key):
    (table,) = tables([record(seed=0), record(seed=1, config={key: "elsewhere"})])
    assert len(table.rows) == 1


def test_a_selectors_own_settings_make_rows_of_their_own():
    """An ablation grid varies selector.* under one name: averaging it would average methods."""
    (table,) = tables(
        [
            record(seed=s, config={"selector": {"subspace": kind, "ridge": 0.1}})
            for s in range(2)
            for kind in ("pca", "none")
        ]
    )
    assert {row.label for row in table.rows} == {"gtp [subspace=pca]", "gtp [subspace=none]"}
    assert all(len(row.runs) == 2 for row in table.rows)


def test_a_whole_number_is_the_same_with_and_without_a_point():
    runs = [
        record(seed=seed, config={"selector": {"_target_": "gtp", "ridge": ridge, "ridges": [ridge, 0.5]}})
        for seed, ridge in enumerate((1, 1.0))
    ]
    (table,) = tables(runs)
    assert [(row.label, len(row.runs)) for row in table.rows] == [("gtp", 2)]


def with_solver(name, **options):
    solver = {"_target_": f"gtp_exp.selection.solvers.{name}", **options}
    return record(
        config={"selector": {"_target_": "gtp_exp.selection.gtp.GTP", "ridge": 0.1, "solver": solver}}
    )


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        (
            [with_solver("cosamp.CoSaMP", ridge=r, prune_stages=4, tolerance=0.02) for r in (0.1, 1.0)],
            ["gtp [solver.ridge=0.1]", "gtp [solver.ridge=1]"],
        ),
        (
            [with_solver("cosamp.CoSaMP", prune_stages=4, tolerance=0.02), with_solver("omp.OMP")],
            ["gtp [solver=CoSaMP]", "gtp [solver=OMP]"],
        ),
        (
            [
                with_solver("cosamp.CoSaMP", tolerance=0.02),
                *(with_solver("omp.OMP", steps=n) for n in (1, 2)),
            ],
            ["gtp [solver=CoSaMP]", "gtp [solver=OMP, solver.steps=1]", "gtp [solver=OMP, solver.steps=2]"],
        ),
        (
            [with_solver("omp.OMP", steps=1), with_solver("own.OMP", size=2)],
            [f"gtp [solver._target_=gtp_exp.selection.solvers.{module}.OMP]" for module in ("omp", "own")],
        ),
        (
            [with_solver("omp.OMP"), with_solver("omp.OMP", steps=2)],
            ["gtp [solver.steps=(absent)]", "gtp [solver.steps=2]"],
        ),
    ],
    ids=[
        "one option",
        "solvers",
        "solvers and an option",
        "solvers of one name",
        "an option of a later release",
    ],
)
def test_a_label_holds_the_settings_that_tell_the_compared_rows_apart(runs, labels):
    (table,) = tables(runs)
    assert [row.label for row in table.rows] == labels


def test_a_budget_that_was_overridden_is_another_budget():
    (table,) = tables([record(seed=0), record(seed=1, config={"budget": {"unit": "rows", "amount": 7}})])
    assert len({row.budget for row in table.rows}) == 2


def test_a_setting_that_follows_the_seed_is_the_seed():
    (table,) = tables([record(seed=s, config={"train": {"lr": 1, "seed": s}}) for s in range(3)])
    assert len(table.rows) == 1


@pytest.mark.parametrize("of_trajectory", [lambda s: s, lambda s: 100 + s])
def test_a_trajectory_seed_that_varies_with_the_seed_is_averaged_over(of_trajectory):
    runs = [
        record(name, s, config={"gradients": {"seed": of_trajectory(s)}})
        for s in range(3)
        for name in ("gtp", "random")
    ]
    (table,) = tables(runs)
    assert [len(row.runs) for row in table.rows] == [3, 3] and not table.differing


def test_sweeps_of_fixed_and_of_varied_trajectories_are_two_tables_and_no_more():
    fixed = [record(seed=s, config={"gradients": {"seed": 0}}) for s in range(3)]
    varied = [replace(record(seed=s, config={"gradients": {"seed": s}}), group="other") for s in range(3)]
    found = tables([*fixed, *varied])
    assert {table.differing["gradients.seed"] for table in found} == {"0", "(varies with seed)"}
    assert [[len(row.runs) for row in table.rows] for table in found] == [[3], [3]]


def test_sweeps_that_give_a_seed_different_trajectories_are_never_averaged():
    runs = [
        replace(record(seed=s, config={"gradients": {"seed": s + shift}}), group=f"sweep {shift}")
        for shift in (0, 10)
        for s in range(2)
    ]
    assert all(len(row.runs) == 1 for table in tables(runs) for row in table.rows)
    assert group(as_runs(runs), beside=()).repeated == ()


def test_a_fixed_trajectory_under_several_seeds_is_said_to_limit_the_intervals():
    def notes(trajectories, **changes):
        runs = [record(seed=s, config={"gradients": {"seed": g}}) for s, g in enumerate(trajectories)]
        return " ".join(board([replace(run, **changes) for run in runs]).notes)

    assert "gradients.seed=7" in notes([7, 7, 7]) and "gradients.seed=${seed}" in notes([7, 7, 7])
    assert "gradients.seed" not in notes([0, 1, 2])
    assert "gradients.seed" not in notes([7])
    assert "gradients.seed" not in notes([7, 7, 7], stages={})  # no selector read gradients


def test_a_fixed_seed_of_another_stage_stays_a_setting():
    found = tables([record(seed=s, config={"gradients": {"seed": g}}) for s in (0, 1) for g in (0, 1)])
    assert len(found) == 2 and all("gradients.seed" in table.differing for table in found)


def test_beside_puts_a_setting_in_the_rows_and_still_never_averages_it():
    runs = [record(seed=s, config={"train": {"lr": lr}}) for s in range(2) for lr in (1, 2)]
    assert len(tables(runs)) == 2
    (table,) = tables(runs, beside=["train"])
    assert {row.variant for row in table.rows} == {"train.lr=1", "train.lr=2"}
    assert all(len(row.runs) == 2 for row in table.rows)


def test_models_can_stand_beside_each_other():
    def of(name, weights, selector, seed):
        run = record(selector, seed, config={"model": {"hub_id": name}}, names={"model": name})
        return replace(run, model={"weights": weights, "chat_template": "t", "dtype": "float32"})

    kinds = [("small", "w0"), ("large", "w1")]
    runs = [of(*kind, s, seed) for kind in kinds for s in ("gtp", "random") for seed in (0, 1)]
    found = board(runs, beside=["model"])
    assert len(found.lines) == 4
    assert all(li.versus is not None for li in found.lines if li.row.selector == "gtp")


def test_a_selectors_variants_are_compared_to_the_baseline_of_the_same_grid_settings():
    def run(selector, ridge, lr, seed, loss):
        own = {"selector": {"_target_": selector, "ridge": ridge}, "train": {"lr": lr}}
        return record(selector, seed, loss=loss, config=own)

    runs = [run("random", 0, lr, seed, 2 + lr + 0.1 * seed) for lr in (1, 2) for seed in (0, 1, 2)]
    runs += [run("gtp", r, lr, s, 1 + lr + 0.01 * s * r) for r in (1, 2) for lr in (1, 2) for s in (0, 1, 2)]
    found = board(runs, beside=["train"])
    differences = [li.versus.difference for li in found.lines if li.row.selector == "gtp"]
    assert len(differences) == 4 and all(-1.1 < d < -1.05 for d in differences)
    assert not any("Without a run of random" in note for note in found.notes)


def test_a_baseline_of_other_grid_settings_is_no_baseline_and_its_lack_is_said():
    def run(selector, lr, seed):
        return record(selector, seed, loss=2 + seed, config={"train": {"lr": lr}})

    found = board(
        [run("random", 1, s) for s in (0, 1)] + [run("gtp", 2, s) for s in (0, 1)], beside=["train"]
    )
    (gtp,) = [li for li in found.lines if li.row.selector == "gtp"]
    assert gtp.versus is None
    assert any("Without a run of random" in note and "gtp" in note for note in found.notes)


def test_variants_of_one_selector_are_compared_with_the_one_that_is_named():
    """As in an ablation: one change at a time, of the training or of the selector, against the default."""

    def run(ridge, lr, seed, loss):
        own = {"selector": {"_target_": "gtp", "ridge": ridge}, "train": {"lr": lr, "epochs": 3}}
        return record("gtp", seed, loss=loss + 0.01 * seed * ridge, config=own)

    runs = [
        run(*of, seed, loss)
        for of, loss in {(0.3, 1): 2.0, (0.1, 1): 2.5, (0.3, 2): 1.5}.items()
        for seed in (0, 1, 2)
    ]
    unnamed = board(runs, beside=["train"], baseline="gtp")
    assert not any(li.versus for li in unnamed.lines)
    (told,) = [note for note in unnamed.notes if note.startswith("Nothing is compared to gtp")]
    label = told.partition('--baseline "')[2].partition('"')[0]
    assert sum(li.is_baseline for li in board(runs, beside=["train"], baseline=label).lines) == 1

    for name in ("gtp [ridge=0.3, train.lr=1]", "gtp[train.lr=1.0, ridge=0.3]"):
        found = board(runs, beside=["train"], baseline=name)
        by_label = {li.row.label: li for li in found.lines}
        assert not any("is compared to" in note or "Without a run" in note for note in found.notes)
        assert by_label["gtp [ridge=0.3, train.lr=1]"].is_baseline
        assert by_label["gtp [ridge=0.1, train.lr=1]"].versus.difference == pytest.approx(0.498)
        assert by_label["gtp [ridge=0.3, train.lr=2]"].versus.difference == pytest.approx(-0.5)
    assert sum(li.is_baseline for li in board(runs, beside=["train"], baseline="gtp [train.lr=2]").lines) == 1
    layers = Row("gtp", 'layers=["q","v"], ridge=0.3', "5pct", {}, ())
    assert is_baseline(layers, 'gtp [layers=["q","v"]]') and not is_baseline(layers, 'gtp [layers=["q","k"]]')
    absent = board(runs, beside=["train"], baseline="gtp [train.lr=7]")
    assert "No run of the baseline gtp [train.lr=7]: nothing is compared to it." in absent.notes


def test_a_seed_run_twice_counts_once_and_the_later_one_wins():
    early = record(loss=3.0)
    late = replace(record(loss=2.0), finished="2026-01-02T00:00:00+00:00")
    grouped = group(as_runs([late, early]), beside=())
    ((row,),) = [table.rows for table in grouped.tables]
    assert [run.record for run in row.runs] == [late]
    assert [(again.left_out.record, again.kept.record) for again in grouped.repeated] == [(early, late)]


# Numbers


def test_a_mean_is_over_tasks_then_over_seeds():
    found = line(board([record(seed=0, loss=2.0), record(seed=1, loss=3.0)]), "gtp")
    assert found.values["nats_per_token"] == pytest.approx({0: 2.1, 1: 3.1})  # the second task is 0.2 higher
    assert found.summary["nats_per_token"].mean == pytest.approx(2.6)


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("acc", True),
        ("exact_match", True),
        ("f1", True),
        ("nats_per_token", False),
        ("word_perplexity", False),
        ("bits_per_byte", False),
        ("answer_accuracy", True),  # "wer" within a word is no error rate
        ("ter", False),
        ("brier_score", False),
        # As lm-eval's tasks declare their measures of bias.
        ("amb_bias_score_Age", False),
        ("likelihood_diff", False),
        ("difference_male_female", False),
        ("pct_male_preferred", False),
        ("pct_stereotype", False),
        ("pct_invalid", False),
        ("perspective_api_toxicity_score", False),
    ],
)
def test_a_metrics_direction_follows_its_name(name, higher):
    assert metric_named(name).higher_is_better is higher


@pytest.mark.parametrize(("metric", "first"), [("nats_per_token", "good"), ("acc", "accurate")])
def test_rank_follows_the_metrics_direction(metric, first):
    runs = [record("good", loss=1.0, accuracy=0.2), record("accurate", loss=2.0, accuracy=0.9)]
    found = board(runs, metric=metric)
    assert [li.row.label for li in found.lines][0] == first
    assert [li.rank for li in found.lines] == [1, 2]
    assert found.metrics[0].name == metric


def test_loss_and_accuracy_stand_beside_each_other_whichever_ranks():
    assert [m.name for m in board([record()]).metrics] == ["nats_per_token", "acc"]
    assert [m.name for m in board([record()], metric=HEADLINE).metrics] == ["acc", "nats_per_token"]


def test_equal_means_share_a_rank():
    found = board([record("a", loss=2.0), record("b", loss=2.0), record("c", loss=3.0)])
    assert [li.rank for li in found.lines] == [1, 1, 3]
    assert "a and b share the lowest" in sentences(found.blocks[0], found.metrics[0], "random")[0]


def test_a_clear_difference_is_called_better_and_best():
    runs = sweep({"gtp": 1.0, "less": 1.6, "random": 2.0}, 6, spread=0.05, rng=random.Random(0))
    found = board(runs)
    gtp = line(found, "gtp")
    assert gtp.best and gtp.better_than_baseline is True
    assert gtp.versus is not None and gtp.versus.win_rate == 1 and gtp.versus.n == 6
    assert gtp.versus.difference == pytest.approx(-1.0, abs=0.1)
    assert not line(found, "less").best and line(found, "random").versus is None
    words = " ".join(sentences(found.blocks[0], found.metrics[0], "random"))
    assert "better than every other row" in words and "Better than random" in words


def test_a_clear_loss_is_called_worse():
    runs = sweep({"bad": 3.0, "random": 2.0}, 6, spread=0.05, rng=random.Random(0))
    found = board(runs)
    assert line(found, "bad").better_than_baseline is False
    assert "Worse than random" in " ".join(sentences(found.blocks[0], found.metrics[0], "random"))


@pytest.mark.parametrize("metric", ["nats_per_token", "acc"])
@pytest.mark.parametrize("rare", [1, -1])
def test_the_direction_is_that_of_the_mean_difference_not_of_the_seeds_won(metric, rare):
    """Half of the seeds differ by much in one direction, half by nearly nothing in the other."""
    values = [0.5 + 0.3 * rare, 0.5 - 0.0001 * rare] * 4
    runs = [record("gtp", s, loss=v, accuracy=v) for s, v in enumerate(values)]
    runs += [record("random", s, loss=0.5, accuracy=0.5) for s in range(8)]
    found = board(runs, metric=metric)
    gtp = line(found, "gtp")
    higher = gtp.versus is not None and gtp.versus.difference > 0
    assert gtp.versus is not None and gtp.versus.win_rate == 0.5 and higher == (rare > 0)
    assert gtp.better_than_baseline is (higher if metric == "acc" else not higher)
    words = " ".join(sentences(found.blocks[0], found.metrics[0], "random"))
    assert ("Better than random" in words) is gtp.better_than_baseline
    assert ("Worse than random" in words) is not gtp.better_than_baseline


def test_a_leader_by_its_extra_seeds_is_not_best_where_it_loses_at_equal_seeds():
    runs = [record("a", s, loss=2.1 + s / 1000 if s < 5 else 0.1) for s in range(10)]
    runs += [record("b", s, loss=2.0) for s in range(5)]
    found = board(runs)
    assert found.lines[0].row.label == "a" and not found.lines[0].best
    assert found.blocks[0].close == ("b",)


def test_a_row_that_cannot_be_told_from_the_baseline_is_not_the_best():
    """Its difference to the baseline is one of the leader's tests, and one of all selectors' tests."""
    noise = [-0.2, -0.1, 0.0, 0.1, 0.2]
    runs = [record("gtp", s, loss=1.0 + 0.01 * s) for s in range(5)]
    runs += [record("random", s, loss=1.28 + 0.01 * s + noise[s]) for s in range(5)]
    runs += [record(other, s, loss=1.2 + 0.01 * s + 0.01 * noise[s]) for other in "ab" for s in range(5)]
    found = board(runs)
    gtp = line(found, "gtp")
    assert gtp.versus.p < 0.05 < gtp.p_holm and gtp.better_than_baseline is None
    assert not gtp.best and found.blocks[0].close == ("random",)
    assert "gtp cannot be told from random" in " ".join(
        sentences(found.blocks[0], found.metrics[0], "random")
    )


@pytest.mark.parametrize("baseline", ["first", "other"])
def test_a_first_row_that_the_data_named_is_told_apart_over_all_pairs(baseline):
    """The largest of ten that are alike is often far from the smallest; a baseline is named before."""
    noise = random.Random(0)
    runs = [record("first", s, loss=1.0 + 0.05 * noise.gauss(0, 1)) for s in range(5)]
    for name, mean in {"other": 1.02, "b": 1.03, "c": 1.04, "d": 1.05, "last": 1.1}.items():
        runs += [record(name, s, loss=mean + 0.05 * noise.gauss(0, 1)) for s in range(5)]
    block = board(runs, baseline=baseline).blocks[0]
    assert block.lines[0].row.label == "first"
    assert ("last" in block.close) is (baseline == "other")


def test_equal_selectors_are_seldom_told_apart():
    told = 0
    for seed in range(60):
        found = board(sweep({f"s{i}": 2.0 for i in range(8)}, 5, spread=0.1, rng=random.Random(seed)))
        told += len(found.blocks[0].close) < 7
    assert told <= 4  # at most 5% of 60 are expected


def test_noise_is_called_nothing():
    """Twelve selectors drawn from one distribution: uncorrected, one in twenty would look better."""
    called = 0
    for seed in range(20):
        names = {f"s{i}": 2.0 for i in range(12)} | {"random": 2.0}
        found = board(sweep(names, 5, spread=0.1, rng=random.Random(seed)))
        called += any(li.better_than_baseline is not None for li in found.lines)
    assert called <= 4  # at most 5% of the families are expected to have one


def test_a_single_seed_is_never_called_better():
    found = board(sweep({"gtp": 1.0, "less": 5.0, "random": 9.0}, 1, spread=0.0, rng=random.Random(0)))
    for li in found.lines:
        assert not li.best and li.better_than_baseline is None
        assert li.summary["nats_per_token"].interval is None
    assert "single seed" in " ".join(sentences(found.blocks[0], found.metrics[0], "random"))


def test_the_best_of_two_that_cannot_be_told_apart_is_not_marked():
    runs = sweep({"a": 1.0, "b": 1.01, "random": 2.0}, 5, spread=0.1, rng=random.Random(2))
    found = board(runs)
    assert not any(li.best for li in found.lines)
    assert len(found.blocks[0].close) == 1


def test_differences_are_within_one_budget():
    runs = [
        record(s, seed, budget=b, loss=x)
        for seed in (0, 1)
        for s, b, x in (
            ("gtp", "1pct", 3.0),
            ("random", "1pct", 4.0),
            ("gtp", "5pct", 1.0 + seed),
            ("random", "5pct", 1.5),
        )
    ]
    found = board(runs)
    one, five = line(found, "gtp", "1pct"), line(found, "gtp", "5pct")
    assert one.versus is not None and one.versus.difference == pytest.approx(-1.0)
    assert five.versus is not None and five.versus.difference == pytest.approx(0.0)


def test_budgets_stand_in_the_order_of_their_size():
    runs = [
        record(budget=b, chosen=[f"r{i}" for i in range(n)])
        for b, n in (("10pct", 9), ("1pct", 1), ("5pct", 5))
    ]
    assert [block.budget for block in board(runs).blocks] == ["1pct", "5pct", "10pct"]


def test_a_selector_that_ignores_the_budget_does_not_change_the_budgets_size():
    pool = [f"r{i}" for i in range(100)]
    runs = [
        record(s, budget=b, chosen=pool[:n], diagnostics={"ignores_budget": True} if s == "full" else {})
        for b, size in (("1pct", 2), ("5pct", 10))
        for s, n in (("gtp", size), ("random", size), ("full", 100))
    ]
    found = board(runs)
    assert [(block.budget, block.n_selected) for block in found.blocks] == [("1pct", 2), ("5pct", 10)]
    assert line(found, "full").n_selected == 100 and line(found, "gtp").n_selected == 10
    alone = board([run for run in runs if run.names.selector == "full"])
    assert {block.n_selected for block in alone.blocks} == {100}


def test_another_baseline_can_be_chosen_and_a_missing_one_is_said():
    runs = [record("gtp"), record("full")]
    assert line(board(runs, baseline="full"), "gtp").versus is not None
    missing = board(runs)
    assert line(missing, "gtp").versus is None and any("random" in note for note in missing.notes)


def test_ranks_are_compared_from_three_rows_and_seeds_on():
    rng = random.Random(0)
    enough = board(sweep({"a": 1.0, "b": 2.0, "random": 3.0}, 3, spread=0.01, rng=rng)).blocks[0].ranks
    assert enough is not None and enough.mean_ranks == pytest.approx((1, 2, 3)) and enough.blocks == 3
    assert board(sweep({"a": 1.0, "b": 2.0, "c": 3.0}, 2, spread=0.01, rng=rng)).blocks[0].ranks is None
    assert board(sweep({"a": 1.0, "b": 2.0}, 5, spread=0.01, rng=rng)).blocks[0].ranks is None


def test_costs_are_medians_and_choosing_ends_before_training():
    found = line(board([record(seed=s) for s in range(3)]), "gtp")
    middle = sorted(run.record.stages["finetune"].seconds for run in found.row.runs)[1]
    assert found.seconds["finetune"] == middle
    kept = found.seconds["warmup"] + found.seconds["gradients"] + found.seconds["selection"]
    assert found.choosing_seconds == pytest.approx(kept)
    assert not is_choosing("evaluation of the untuned model") and is_choosing("gradients (pool)")


# Missing and unlike numbers


def test_a_run_without_a_task_is_not_ranked_and_said_to_be():
    partial = record(seed=1)
    partial = replace(partial, metrics={"sorting": partial.metrics["sorting"]})
    found = board([record(seed=0), partial])
    assert [(run.record.seed, reason) for run, reason in found.unranked] == [(1, "not evaluated on roman")]
    assert set(line(found, "gtp").values["nats_per_token"]) == {0}


def test_a_run_that_is_not_ranked_is_not_among_the_seeds_of_its_row():
    runs = [record(seed=s) for s in range(3)]
    runs[1] = replace(runs[1], metrics={"sorting": runs[1].metrics["sorting"]})
    found = line(board(runs), "gtp")
    assert [run.record.seed for run in found.row.runs] == [0, 2] == sorted(found.values["nats_per_token"])


def test_a_run_without_the_metric_of_a_task_is_not_ranked():
    broken = record(seed=1)
    lacking = {k: v for k, v in broken.metrics["roman"].items() if k != "nats_per_token"}
    found = board([record(seed=0), replace(broken, metrics={**broken.metrics, "roman": lacking})])
    assert [reason for _, reason in found.unranked] == ["no nats_per_token for roman"]


def test_a_further_metric_that_some_runs_lack_is_a_mean_over_fewer_seeds_and_said_to_be():
    """Runs of an earlier release do not tell every metric."""
    runs = [record(name, seed) for name in ("gtp", "random") for seed in range(3)]
    told = [replace(r, metrics={t: {**of, "content": 1.0} for t, of in r.metrics.items()}) for r in runs]
    found = board([runs[0], *told[1:]])
    assert line(found, "gtp").summary["content"].n == 2 and not found.unranked
    assert [note for note in found.notes if "fewer seeds" in note] == [
        "Some runs do not tell content over tasks: it is a mean over fewer seeds for gtp at 5pct (2 of 3)."
    ]
    assert not [note for note in (*board(told).notes, *board(runs).notes) if "fewer seeds" in note]


def test_a_task_that_never_has_the_metric_is_left_out_of_its_mean_and_said_to_be():
    """A generation task has no held-out loss of its own."""
    runs = [
        replace(r, metrics={**r.metrics, "generation": {"exact_match": 0.5, "headline": "exact_match"}})
        for r in (record(seed=0), record(seed=1))
    ]
    found = board(runs)
    assert not found.unranked
    assert line(found, "gtp").summary["nats_per_token"].mean == pytest.approx(2.1)
    assert line(found, "gtp").summary[HEADLINE].mean == pytest.approx((0.3 + 0.3 + 0.5) / 3)
    assert any("not generation" in note for note in found.notes)


def of_unlike_directions(run):
    perplexity = {"word_perplexity": 20.0, "headline": "word_perplexity"}
    return replace(
        run,
        metrics={**run.metrics, "wikitext": {**perplexity, "word_perplexity": 19.0}},
        untuned={**run.untuned, "wikitext": perplexity},
    )


def test_an_accuracy_and_a_perplexity_have_no_mean():
    runs = [of_unlike_directions(record(name, seed)) for name in ("gtp", "random") for seed in range(2)]
    assert headline_mean(runs[0]) is None and headline_mean(record()) is not None
    found = board(runs)
    assert [kind.name for kind in found.metrics] == ["nats_per_token"] and not found.unranked
    unranked = board(runs, metric=HEADLINE).unranked
    assert len(unranked) == 4
    assert unranked[0][1] == (
        "the tasks' own metrics have no mean (acc: higher is better, word_perplexity: lower is better); "
        "choose one by --metric"
    )
    assert not board(runs, metric="acc").unranked


def test_a_metric_that_no_run_has_is_refused_with_the_choice():
    with pytest.raises(UserError, match="--metric bleu.*acc, headline, nats_per_answer, nats_per_token"):
        check_metric(as_runs([record()]), "bleu")


def test_runs_that_were_only_selected_make_a_board_without_ranks():
    found = board([replace(record(s), metrics={}, untuned={}) for s in ("gtp", "random")])
    assert found.metrics == () and [li.rank for li in found.lines] == [None, None]
    assert any("not evaluated" in note for note in found.notes)


def test_different_commits_versions_and_seeds_are_said():
    other = replace(record(seed=1), git_sha="fedcba", packages={"torch": "2.14.0", "lm_eval": "0.4.13"})
    notes = " ".join(board([record(seed=0), other, record("random", 0)]).notes)
    assert "2 commits" in notes and "torch 2.13.0, 2.14.0" in notes and "lm_eval" not in notes
    assert "different seeds" in notes and "different devices" not in notes


def test_different_devices_are_said():
    other = replace(record(seed=1), model={**record().model, "device": "cuda"})
    (note,) = [note for note in board([record(seed=0), other]).notes if "different devices" in note]
    assert "(cpu, cuda)" in note


def test_a_run_that_only_chose_stands_unranked_beside_the_tuned_ones():
    tuned = [record(name, seed) for name in ("gtp", "random") for seed in range(2)]
    chose = replace(record("craig", config={"until": "selection"}), metrics={}, untuned={})
    found = board([*tuned, chose])
    assert [run.record.names.selector for run, _ in found.unranked] == ["craig"]
    assert "different seeds" not in " ".join(found.notes)


def test_runs_that_disagree_on_the_untuned_model_are_said():
    other = record(seed=1)
    other = replace(other, untuned={t: {**v, "nats_per_token": 9.0} for t, v in other.untuned.items()})
    assert any("untuned" in note for note in board([record(seed=0), other]).notes)
    assert not any("untuned" in note for note in board([record(seed=0), record(seed=1)]).notes)


def test_the_untuned_model_is_a_reference():
    assert board([record()]).untuned == {"nats_per_token": 3.5, "acc": 0.25}


def test_a_task_is_shown_before_and_after():
    found = board([record(loss=2.0, accuracy=0.2)])
    changes = {(c.task, c.metric.name): c.change for c in task_changes(found, found.lines[0])}
    assert changes[("sorting", "acc")] == pytest.approx(-0.05)
    assert changes[("roman", "nats_per_token")] == pytest.approx(2.2 - 3.5)
