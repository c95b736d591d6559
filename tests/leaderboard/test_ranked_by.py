"""Which metric ranks a table: as the answers of the benchmark ask, and the table says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from leaderboard_runs import record, save

from gtp_exp.data.benchmark import Answers, answers_of
from gtp_exp.errors import UserError
from gtp_exp.leaderboard.command import main
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.scoring import score
from gtp_exp.leaderboard.verdict import sentences
from gtp_exp.records.record import StageCost
from gtp_exp.records.row_results import ROW_RESULTS_NAME, write_row_results


def run_of(selector, seed, answers, accuracy, content=1.0, loss=2.0, **common):
    """A run of two tasks of choices, or of another kind that has no content."""
    run = record(selector, seed, accuracy=accuracy, loss=loss, **common)
    headline = "exact_match" if answers is Answers.REASONING else "acc"
    metrics = {
        task: {**values, headline: accuracy, "headline": headline}
        | ({"content": content} if answers is Answers.CHOICES else {})
        for task, values in run.metrics.items()
    }
    return replace(run, metrics=metrics, answers=answers)


def board(records, metric=None):
    runs = [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), run) for i, run in enumerate(records)]
    (table,) = group(runs, beside=()).tables
    return score(table, metric=metric, baseline="random")


def pair(answers, accuracies, **common):
    """gtp and random at three seeds; accuracies: of gtp, of random."""
    return [
        run_of(name, seed, answers, accuracy + 0.01 * seed * (-1) ** (name == "gtp"), **common)
        for name, accuracy in zip(("gtp", "random"), accuracies, strict=True)
        for seed in range(3)
    ]


def test_choices_rank_by_accuracy_where_it_tells_selectors_apart():
    found = board(pair(Answers.CHOICES, (0.9, 0.3)))
    assert found.metrics[0].name == "acc" and found.lines[0].row.selector == "gtp"
    assert found.ranked_by.startswith("Ranked by acc: the answers are choices") and "5pct" in found.ranked_by


def test_choices_rank_by_content_where_accuracy_tells_nothing_apart():
    runs = pair(Answers.CHOICES, (0.31, 0.30), content=1.0)
    runs += [run_of("top_k", s, Answers.CHOICES, 0.3, content=0.5 + 0.01 * s) for s in range(3)]
    found = board(runs)
    assert found.metrics[0].name == "content" and found.lines[0].row.selector == "top_k"
    assert "acc tells no two selectors apart" in found.ranked_by
    assert [m.name for m in found.metrics] == ["content", "nats_per_token", "acc"]


def test_a_single_seed_tells_nothing_apart():
    runs = [run_of(name, 0, Answers.CHOICES, acc) for name, acc in (("gtp", 0.9), ("random", 0.1))]
    assert board(runs).metrics[0].name == "content"


def test_many_pairs_without_a_difference_are_not_told_apart():
    """Uncorrected, some of the 45 pairs of ten selectors are below 5%."""
    rng = np.random.default_rng(0)
    runs = [
        run_of(f"s{i}", seed, Answers.CHOICES, float(rng.normal(0.5, 0.05)))
        for i in range(10)
        for seed in range(4)
    ]
    assert board(runs).metrics[0].name == "content"


@pytest.mark.parametrize("accuracies", [(0.9, 0.3), (0.31, 0.30)])
def test_reasoning_is_never_ranked_by_the_loss_of_a_bare_answer(accuracies):
    found = board(pair(Answers.REASONING, accuracies))
    assert found.metrics[0].name == "exact_match" and "reasoning" in found.ranked_by


@pytest.mark.parametrize("answers", [Answers.TEXT, None])
def test_other_text_and_records_that_do_not_tell_rank_by_the_held_out_loss(answers):
    runs = [replace(run, answers=answers) for run in pair(Answers.CHOICES, (0.9, 0.3))]
    found = board(runs)
    assert found.metrics[0].name == "nats_per_token" and "held-out loss" in found.ranked_by


def test_a_metric_that_is_asked_for_ranks():
    found = board(pair(Answers.REASONING, (0.9, 0.3)), metric="nats_per_token")
    assert found.metrics[0].name == "nats_per_token" and "asked for" in found.ranked_by


def test_answers_of_another_type_are_refused():
    class Odd:
        answers = "choices"

    class Silent:
        pass

    with pytest.raises(UserError, match="Odd.answers='choices' must be a member of .*Answers: CHOICES, REAS"):
        answers_of(Odd())  # type: ignore[arg-type]
    assert answers_of(Silent()) is Answers.TEXT  # type: ignore[arg-type]


# A verdict that holds for one trajectory


def verdict(records):
    found = board(records, metric="nats_per_token")
    return " ".join(sentences(found.blocks[0], found.metrics[0], "random"))


def test_a_verdict_that_holds_for_one_trajectory_says_so():
    fixed = [record(s, seed, loss=x + 0.01 * seed) for s, x in (("gtp", 1), ("random", 2)) for seed in (0, 1)]
    assert "for one warm-up trajectory (gradients.seed=0)" in verdict(fixed)
    varied = [
        replace(run, config={**run.config, "gradients": {"dim": 1024, "seed": run.seed}}) for run in fixed
    ]
    assert "trajectory" not in verdict(varied)
    pools = [
        replace(
            run,
            config={**run.config, "dataset": {"rows": 1000, "seed": run.seed}},
            pool=run.pool and replace(run.pool, content=f"pool {run.seed}"),
        )
        for run in fixed
    ]
    assert "trajectory" not in verdict(pools)  # the warm-up of another pool is another
    no_warmup = [replace(run, stages={k: v for k, v in run.stages.items() if k != "warmup"}) for run in fixed]
    assert "trajectory" not in verdict(no_warmup)


def test_a_verdict_that_holds_for_one_store_made_elsewhere_says_so():
    def given(run, key):
        stages = {"gradients: pool": StageCost(key, 0.0, True), "selection": run.stages["selection"]}
        config = {**run.config, "gradients": {"pool": "stores/pool", "target": None}}
        return replace(run, stages=stages, config=config)

    runs = [record(s, seed, loss=x + 0.01 * seed) for s, x in (("gtp", 1), ("random", 2)) for seed in (0, 1)]
    one_store = [given(run, "a") for run in runs]
    assert "for one warm-up trajectory (gradients.pool=stores/pool)" in verdict(one_store)
    assert "trajectory" not in verdict([given(run, str(run.seed)) for run in runs])


# Through files


def save_with_rows(run, root, rows):
    """A run whose every task has the same rows, of the mean that it tells."""
    folder = save(run, root)
    write_row_results({"": {task: {"acc": rows} for task in run.metrics}}, folder)
    return folder


def test_results_of_single_rows_beside_the_record_give_two_way_intervals(tmp_path, capsys):
    rng, folders = np.random.default_rng(1), []
    for name, rate in (("gtp", 0.9), ("random", 0.2)):
        for seed in range(3):
            rows = (rng.random(40) < rate).astype(float)
            run = run_of(name, seed, Answers.CHOICES, float(rows.mean()), content=1.0 + 0.01 * seed)
            folders.append(save_with_rows(run, tmp_path / "runs", rows))
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    table = (tmp_path / "out" / "leaderboard.csv").read_text()
    acc, content = ([x for x in table.splitlines() if f",{m}," in x] for m in ("acc", "content"))
    assert len(acc) == 2 and all(",two-way," in line for line in acc)
    assert len(content) == 2 and all(",t," in line for line in content)  # its rows were not kept
    assert "Ranked by acc" in capsys.readouterr().out
    for name in ("index.html", "leaderboard.md", "leaderboard.json"):
        assert "Ranked by acc" in (tmp_path / "out" / name).read_text()
    (folders[0] / ROW_RESULTS_NAME).write_bytes(b"damaged")
    assert main(arguments) == 0
    assert f"{ROW_RESULTS_NAME} is damaged" in capsys.readouterr().out
