"""The estimate against the pipeline: what it counts is what gets computed, and what it shares is shared."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from stage_changes import ALL, CHANGES
from test_command_line import ENVIRONMENT, TOY, command

from gtp_exp import experiment
from gtp_exp.config import build
from gtp_exp.errors import UserError
from gtp_exp.estimate import parts
from gtp_exp.estimate.__main__ import estimate
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.estimate.parts import ASSUMED_ROWS, Parts, published_rows
from gtp_exp.estimate.rates import measured_rates, price
from gtp_exp.estimate.runs import earlier_runs, overhead
from gtp_exp.estimate.table import axes, estimated_time, with_unit_prefix
from gtp_exp.estimate.walk import POOL, TARGET, chosen, plan, rate_names, store_bytes
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.shards import StorageType
from gtp_exp.gradients.sketch import Sketch, SketchKind
from gtp_exp.gradients.store import GradientStore
from gtp_exp.model.loading import ModelConfig, ModelSource, prepare
from gtp_exp.records.record import State, read_record, write_record
from gtp_exp.selection.base import Budget, Unit
from gtp_exp.stages.evaluation import EVALUATION, UNTUNED
from gtp_exp.worker import _begin, _now, assemble

ROOT = Path(__file__).resolve().parents[2]
GRID = ["-m", "selector=less,top_k,embedding_knn,random", "budget=10pct"]


def compose(*overrides):
    return compose_jobs(command(*overrides)[3:], str(ROOT / "conf"))


def configs(found):
    return [job["config"] for job in found]


def run(job, directory):
    """One job as the worker runs it, its record included."""
    directory.mkdir(parents=True)
    names = {k: v for k, v in job["names"].items() if k != "experiment"}
    record = _begin(job["config"], {"names": names, "group": "sweep", "overrides": []})
    context = {"name": directory.name, "group": "sweep", "overrides": []}
    record = experiment.run(assemble(dict(job["config"])), record, directory, context)
    write_record(replace(record, state=State.COMPLETE, finished=_now()), directory)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A small grid, estimated and then run. Returns its jobs, the plan made before, and where it ran."""
    outputs = tmp_path_factory.mktemp("outputs")
    prepare(ModelConfig(source=ModelSource.TINY), outputs / "cache", torch.device("cpu"))
    jobs = compose(*GRID, f"outputs={outputs}")
    planned = plan(configs(jobs))
    for i, job in enumerate(jobs):
        run(job, outputs / "runs" / "sweep" / str(i))
    return jobs, planned, outputs


def test_a_value_that_follows_another_follows_it_in_every_job():
    jobs = configs(compose("-m", "seed=0,1,2", "gradients.seed=${seed}"))
    assert [(job["seed"], job["gradients"]["seed"]) for job in jobs] == [(0, 0), (1, 1), (2, 2)]


def test_what_is_counted_is_what_gets_computed(computed):
    _, planned, outputs = computed
    counted = Counter(work.stage.split(":")[0].split(" ")[0] for work in planned.works.values())
    made = {
        folder.name: len(list(folder.glob("*/manifest.json")))
        for folder in (outputs / "cache").iterdir()
        if folder.name not in ("models", "pass")  # passes of a selector are part of its selection
    }
    assert counted == made
    assert made["gradients"] == 3  # of the pool, of whole target rows, and without their end of turn for LESS
    assert made["warmup"] == 1 and made["finetune"] == 4


def test_the_keys_are_those_of_the_jobs_and_what_is_there_is_done(computed):
    jobs, planned, outputs = computed
    assert not any(work.cached for work in planned.works.values())
    made = {
        f"{stage} {key}"
        for path in (outputs / "runs").rglob("results.json")
        for stage, cost in read_record(path).stages.items()
        for key in cost.key.split()
    }
    assert set(planned.works) == made
    again = plan(configs(jobs))
    assert set(again.works) == made and all(work.cached for work in again.works.values())


@pytest.mark.parametrize(
    "overrides",
    [
        ["model@selection_model=tiny", "selection_model.max_length=256"],
        ["benchmark=pool_held_out", "benchmark.test_rows=10"],
        ["benchmark.in_domain=true"],
        ["until=selection", "seed=5"],
        ["until=validation"],
        ["validation.share=0.2", "until=validation", "benchmark=pool_held_out", "benchmark.test_rows=8"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_so_it_is_for_every_kind_of_job(overrides, tmp_path):
    prepare(ModelConfig(source=ModelSource.TINY), tmp_path / "cache", torch.device("cpu"))
    jobs = compose("selector=less", "budget=10pct", f"outputs={tmp_path}", *overrides)
    before = plan(configs(jobs))
    assert not any(work.cached for work in before.works.values())
    run(jobs[0], tmp_path / "run")
    stages = read_record(tmp_path / "run" / "results.json").stages
    assert set(before.works) == {f"{stage} {key}" for stage in stages for key in stages[stage].key.split()}
    assert all(work.cached for work in plan(configs(jobs)).works.values())


def test_so_it_is_where_rows_are_taken_otherwise_than_by_default(tmp_path):
    model = prepare(ModelConfig(source=ModelSource.TINY), tmp_path / "cache", torch.device("cpu"))
    texts = ["1 2 3 " * 99, f"How is {model.tokenizer.eos_token} read?", "Hello?"]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"prompt": "Say:", "completion": text}) + "\n" for text in texts))
    changed = ["dataset=jsonl", f"dataset.files=[{file}]", "dataset.over_length=cut"]
    changed += ["dataset.special_tokens=escape", "selector=random", "budget=100pct", "until=selection"]
    jobs = compose(f"outputs={tmp_path}", *changed)
    run(jobs[0], tmp_path / "run")
    record = read_record(tmp_path / "run" / "results.json")
    assert record.pool and record.pool.cut == 1
    assert set(plan(configs(jobs)).works) == {f"selection {record.stages['selection'].key}"}


def test_the_number_of_processes_is_part_of_the_keys_where_there_is_dropout(computed):
    jobs, planned, outputs = computed
    two = compose(*GRID, f"outputs={outputs}", "launch.num_processes=2")
    assert set(plan(configs(two)).works) == set(planned.works)
    dropped = [f"outputs={outputs}", "selector=less", "model.lora.dropout=0.1"]
    both = [*compose(*dropped), *compose(*dropped, "launch.num_processes=2")]
    assert len(plan(configs(both)).of("warmup")) == 2


def test_the_disk_of_a_store_is_its_shards(computed):
    jobs, planned, outputs = computed
    counted = sum(work.nbytes for stage in (POOL, TARGET) for work in planned.of(stage))
    shards = sum(path.stat().st_size for path in (outputs / "cache" / "gradients").rglob("*.safetensors"))
    assert counted < shards < 1.05 * counted  # the rest is safetensors' headers
    stores = [GradientStore.open(p.parent) for p in (outputs / "cache").rglob("store.json")]
    gradients = build(jobs[0]["config"]["gradients"], "gradients")
    of_rows = {store.n: store_bytes(store.n, gradients) for store in stores}
    assert all(of_rows[store.n] == 2 * 3 * store.n * (4 * store.dim + 4) for store in stores)


def test_jobs_that_collect_gradients_stand_beside_jobs_that_are_given_some(tmp_path):
    (job,) = compose("selector=gtp", "budget=10pct", f"outputs={tmp_path}")
    data = Parts().data(job["config"], Parts().experiment(job["config"]))
    given: dict[str, str] = {"_target_": "gtp_exp.gradients.given.GivenGradients"}
    for split, rows in (("pool", data.inputs.candidates), ("target", data.inputs.target)):
        assert rows is not None
        given[split] = str(tmp_path / split)
        ids = [example.id for example in rows.examples]
        GradientStore.from_arrays(given[split], torch.ones(len(ids), 4), ids=ids)
    jobs = [job["config"], {**job["config"], "gradients": given}]
    names = [job["names"], {**job["names"], "gradients": "given"}]
    text = estimate(jobs, names)
    assert "2 jobs: 2 gradients" in text and re.search(r"gradients: pool +1 +1 +0", text)


def test_int8_and_whole_gradients():
    settings = GradientConfig(sketch=Sketch(dim=100), storage=StorageType.INT8, directions=[Direction.SGD])
    settings = replace(settings, warmup=replace(settings.warmup, epochs=2))
    assert store_bytes(10, settings) == 10 * 2 * 108
    assert store_bytes(10, replace(settings, sketch=Sketch(SketchKind.NONE))) == 0


def test_a_finished_grid_is_done_and_measures_the_next_one(computed):
    jobs, _, outputs = computed
    same = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "the cache holds every stage" in same and "unknown" not in same

    more = compose("-m", "selector=less,random", "budget=10pct", "seed=0,1", f"outputs={outputs}")
    finished = Parts(earlier_runs(outputs / "runs"))
    planned = plan(configs(more), finished)
    left = {work.stage for work in planned.works.values() if not work.cached}
    assert left == {"selection", "finetune", "evaluation"}
    rates = measured_rates(finished, configs(more))
    assert all(price(work, rates) for work in planned.works.values())
    shown = estimate(configs(more), [job["names"] for job in more])
    assert "at the rates of sweep/0" in shown and "unknown" not in shown


def test_further_tests_are_not_priced_by_what_the_main_ones_took(computed, tmp_path):
    jobs, _, outputs = computed
    own = tmp_path / "outputs"
    shutil.copytree(outputs, own)
    further = "tests=[{skills_target:{test_rows:4,generation_skills:[]}}]"
    (job,) = compose("selector=random", "budget=10pct", "seed=7", f"outputs={own}", further)
    finished = Parts(earlier_runs(own / "runs"))
    works = plan([job["config"]], finished).of(EVALUATION)
    rates = measured_rates(finished, [job["config"]])
    assert [work.rows for work in works if price(work, rates) is None] == [4, 4, 4]
    assert len(works) == 4

    run(job, own / "runs" / "further")
    stages = read_record(own / "runs" / "further" / "results.json").stages
    measured = Parts(earlier_runs(own / "runs"))
    rates = measured_rates(measured, [job["config"]])
    planned = plan([job["config"]], measured)
    priced = [price(work, rates) for stage in (EVALUATION, UNTUNED) for work in planned.of(stage)]
    took = stages[EVALUATION].seconds + stages[UNTUNED].seconds
    assert sum(found[0] for found in priced if found) == pytest.approx(took)


def test_answers_that_are_written_are_not_priced_by_choices():
    names = {
        suite: rate_names(EVALUATION, compose(f"benchmark={suite}")[0]["config"])
        for suite in ("mmlu", "bbh", "gsm8k")
    }
    assert not set(names["mmlu"]) & set(names["gsm8k"])
    assert names["bbh"][-1] == names["gsm8k"][-1] and names["bbh"][0] != names["gsm8k"][0]


def test_the_time_around_the_stages_is_what_they_leave_of_the_run(computed):
    jobs, _, outputs = computed
    (run,) = [r for r in earlier_runs(outputs / "runs") if r.record.names.selector == "less"]
    own = sum(cost.seconds for cost in run.record.stages.values() if not cost.cached)
    assert own == pytest.approx(sum(cost.spent for cost in run.record.stages.values())) and own > 0
    stages = run.record.stages
    # A pass of the model that another selection made counts as a cost, but took none of this run's time.
    stages = {**stages, "selection": replace(stages["selection"], seconds=stages["selection"].seconds + 500)}
    run = replace(run, record=replace(run.record, stages=stages))
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00"}
    timed = replace(run, record=replace(run.record, **times))
    assert overhead([timed], configs(jobs)) == pytest.approx(600 - own)
    assert overhead([], configs(jobs)) is None
    assert overhead([timed], configs(compose("dataset.rows=39"))) is None


def test_a_pass_of_the_model_is_counted_for_one_of_the_selections_that_share_it(computed, tmp_path):
    jobs, _, outputs = computed
    grid = compose("-m", "selector=embedding_knn,random", "budget=5pct,10pct,20pct", f"outputs={tmp_path}")
    selections = plan(configs(grid)).of("selection")
    assert sorted(work.passes for work in selections) == [0, 0, 0, 0, 0, 1]
    assert [work.units for work in selections if work.shared] == [0.0, 0.0]
    # An earlier run has made it, so that only choosing is left.
    more = compose("selector=embedding_knn", "budget=5pct", f"outputs={outputs}")
    (new,) = plan(configs(more), Parts(earlier_runs(outputs / "runs"))).of("selection")
    assert not new.cached and new.shared
    assert plan(configs(more)).of("selection")[0].passes == 1


def test_an_entry_without_its_manifest_is_not_done_and_stays_as_it_is(computed, tmp_path):
    jobs, _, outputs = computed
    copy = tmp_path / "outputs"
    shutil.copytree(outputs / "cache", copy / "cache")
    (entry,) = (copy / "cache" / "warmup").glob("*/")
    (entry / "manifest.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    planned = plan([{**job, "outputs": str(copy)} for job in configs(jobs)])
    assert {work.stage for work in planned.works.values() if not work.cached} == {"warmup"}
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_measured_stage_costs_what_it_took(computed):
    """The rate of a stage times its own size is its time."""
    jobs, _, outputs = computed
    (run,) = [r for r in earlier_runs(outputs / "runs") if r.record.names.selector == "less"]
    job = next(c for c in configs(jobs) if "LESS" in c["selector"]["_target_"])
    planned, rates = plan([job]), measured_rates(Parts([run]), [job])
    assert {work.stage for work in planned.works.values()} == ALL
    # One rate for pool and target, and one for the tests, tuned or not.
    for stages in ({"warmup"}, {POOL, TARGET}, {"selection"}, {"finetune"}, {EVALUATION, UNTUNED}):
        prices = [price(work, rates)[0] for stage in stages for work in planned.of(stage)]
        assert sum(prices) == pytest.approx(sum(run.record.stages[stage].seconds for stage in stages)), stages


UNCHANGED = ["selector=less", "budget=10pct"]


@pytest.fixture(scope="module")
def unchanged():
    """The job that each change of one setting is held against."""
    return configs(compose(*UNCHANGED))


@pytest.mark.parametrize(("override", "expected"), CHANGES)
def test_a_change_adds_what_depends_on_it_and_nothing_else(override, expected, unchanged, computed, tmp_path):
    """Whether the model is on this machine or a placeholder stands for it."""
    jobs = [*unchanged, *configs(compose(*UNCHANGED, override))]
    for outputs in (computed[2], tmp_path):
        planned = plan([{**job, "outputs": str(outputs)} for job in jobs])
        assert {stage for stage in ALL if len(planned.of(stage)) == 2} == expected, outputs


def test_in_domain_has_no_target_store_and_rows_held_out_leave_the_pool(computed):
    outputs = f"outputs={computed[2]}"
    (job,) = configs(compose("selector=less", "benchmark.in_domain=true", outputs))
    assert not plan([job]).of(TARGET)
    (job,) = configs(compose("selector=less", "benchmark=pool_held_out", "benchmark.test_rows=10", outputs))
    planned = plan([job])
    assert planned.of(POOL)[0].rows == 40 - 10 and not planned.of(TARGET)  # one of 41 has no answer


@pytest.mark.parametrize(
    ("unit", "amount"),
    [
        *((Unit.FRACTION, share) for share in (0.004, 0.05, 0.5, 1.0)),
        *((Unit.ROWS, n) for n in (1, 7, 137)),
        *((Unit.TOKENS, n) for n in (3, 12)),
    ],
)
def test_a_budget_takes_what_the_selectors_take(unit, amount):
    rows, tokens = chosen(Budget(unit, amount), 137, 10.0, everything=False)
    wanted = Budget(unit, amount).rows(137)
    assert tokens == (amount if wanted is None else 10.0 * rows) and rows == (wanted or 1)
    assert chosen(Budget(unit, amount), 137, 10.0, everything=True) == (137, 1370.0)


SOURCES = [{"rows": 5, "expected_rows": 9}, {"rows": None, "expected_rows": 7}]


@pytest.mark.parametrize(
    ("node", "rows"),
    [
        ({"rows": None, "expected_rows": 900}, 900),
        ({"rows": 50, "expected_rows": 900}, 50),
        ({"rows": 2000, "expected_rows": 900}, 900),
        ({"rows": 50}, 50),
        (
            {"rows": None, "sources": SOURCES},
            12,
        ),
        ({"rows": 6, "sources": SOURCES}, 6),
        ({"rows": None, "sources": [{"rows": None, "expected_rows": None}]}, ASSUMED_ROWS),
        ({"rows": None, "expected_rows": None}, ASSUMED_ROWS),
    ],
)
def test_the_size_of_a_pool_that_is_not_here_is_read_off_the_configuration(node, rows):
    found, place = published_rows(node)
    assert found == rows and ("unknown" in place) == (rows == ASSUMED_ROWS)


def test_a_pool_that_is_not_here_is_bounded_and_said_to_be():
    jobs = compose("-m", "dataset=tulu3", "selector=gtp,random", "dataset.rows=1000")
    text = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "1,000 rows (dataset.rows, not on this machine)" in text
    assert "512 tokens a row (at most, by model.max_length)" in text and "≤" in text


@pytest.fixture
def absent(monkeypatch):
    """A pool and a benchmark that cannot be read."""

    def refuse(self, *_):
        raise UserError("cannot be read from the hub")

    monkeypatch.setattr("toy.ToyPool.load", refuse)
    monkeypatch.setattr("toy.ToyBenchmark.target", refuse)
    monkeypatch.setattr("toy.ToyBenchmark.tasks", refuse)


def test_what_is_not_here_shares_stages_as_its_configuration_does(absent):
    jobs = compose("-m", "selector=less,random", "budget=5pct", "dataset.rows=50,60", "seed=0,1")
    planned = plan(configs(jobs))
    counts = {stage: len(planned.of(stage)) for stage in ALL}
    assert counts == {
        "warmup": 2,
        "gradients: pool": 2,
        "gradients: target": 2,
        "selection": 8,
        "finetune": 8,
        "evaluation": 8,
        "evaluation of the untuned model": 1,
    }
    assert {work.rows for work in planned.of(POOL)} == {50, 60}
    assert {work.rows for stage in (TARGET, "evaluation") for work in planned.of(stage)} == {None}
    text = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "benchmark toy: its target and test rows are left out of the sums (not on this machine)" in text


def test_in_domain_tests_that_are_not_here_leave_no_target_behind(monkeypatch):
    def refuse(self):
        raise UserError("cannot be read from the hub")

    monkeypatch.setattr("toy.ToyBenchmark.tasks", refuse)
    (job,) = compose("selector=less", "benchmark.in_domain=true")
    planned = plan([job["config"]])
    assert planned.of(POOL) and not planned.of(TARGET) and planned.of("evaluation")
    text = estimate([job["config"]], [job["names"]])
    assert "benchmark toy: its test rows are left out of the sums (not on this machine)" in text
    (job,) = compose("selector=less")
    assert [work.rows for work in plan([job["config"]]).of(TARGET)] == [6]


def test_a_pool_that_is_gone_is_the_one_that_a_finished_run_has_used(computed, absent):
    jobs, planned, outputs = computed
    found = plan(configs(jobs), Parts(earlier_runs(outputs / "runs")))
    assert {work.rows for work in found.of(POOL)} == {work.rows for work in planned.of(POOL)}
    assert all(work.cached for work in [*found.of("warmup"), *found.of(POOL)])


def test_of_a_large_pool_only_a_sample_is_tokenised(computed, monkeypatch):
    jobs, planned, outputs = computed
    monkeypatch.setattr(parts, "MOST_ROWS", 30)
    monkeypatch.setattr(parts, "SAMPLED_ROWS", 10)
    text = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "(tokenised 10 of them)" in text and "the cache holds every stage" in text
    assert {work.rows for work in plan(configs(jobs)).of(POOL)} == {41}
    # The key of a stage is of all rows' tokens, so a cache whose runs are elsewhere is not recognised.
    monkeypatch.setattr("gtp_exp.estimate.runs.earlier_runs", lambda _: ())
    text = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "(tokenised 10 of them; which stages are done is not known)" in text


def test_a_model_that_was_never_made_is_said_to_be_missing(tmp_path):
    jobs = compose("selector=random", f"outputs={tmp_path}")
    text = estimate(configs(jobs), [job["names"] for job in jobs])
    assert "model tiny: not on this machine" in text and "the tokenizer is not here" in text
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_job_is_named():
    jobs = configs(compose("-m", "selector=random", "budget.amount=0.1,7"))
    with pytest.raises(UserError, match=r"budget\.amount=7"):
        plan(jobs)


def test_a_budget_above_the_pool_is_told_though_nothing_is_trained():
    jobs = configs(compose("selector=random", "budget=rows", "budget.amount=42", "until=selection"))
    with pytest.raises(UserError, match=r"budget\.amount=42 rows is more than the 4\d candidates"):
        plan(jobs)


def test_the_axes_of_a_grid_are_named():
    jobs = compose("-m", "selector=gtp,random", "seed=0,1,2", "train.epochs=1,2")
    assert axes(configs(jobs), [job["names"] for job in jobs]) == "2 selectors x 2 train.epochs x 3 seeds"
    jobs = compose("selector=random", "budget=5pct")
    assert "selector=random, budget=5pct" in axes(configs(jobs), [job["names"] for job in jobs])


def test_jobs_are_those_of_hydras_own_composition():
    """Jobs that differ in values only are composed once: with the values that Hydra gives them."""
    from hydra import compose as by_hydra
    from hydra import initialize_config_dir

    jobs = compose("-m", "selector=less,random", "seed=0,1", "+a.b=1", "dataset.rows=10,20")
    assert len(jobs) == 8
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in jobs:
            own = [f"selector={job['names']['selector']}", f"seed={job['config']['seed']}"]
            own += ["+a.b=1", f"dataset.rows={job['config']['dataset']['rows']}"]
            whole = by_hydra("config", [search, *TOY, *own])
            assert job["config"] == OmegaConf.to_container(whole, resolve=True) | {"tests": {}}


def test_combinations_of_options_are_those_of_hydras_own_composition():
    """An option is composed once, beside the first of other groups; together they are what Hydra makes."""
    from hydra import compose as by_hydra
    from hydra import initialize_config_dir

    swept = {
        "selector": ["gtp", "less", "gtp_omp", "random"],
        "budget": ["5pct", "tokens"],
        "gradients": ["toy", "less"],
    }
    jobs = compose("-m", *(f"{group}={','.join(options)}" for group, options in swept.items()))
    combinations = {tuple(job["names"][group] for group in swept) for job in jobs}
    assert combinations == set(itertools.product(*swept.values())) and len(jobs) == 16
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in jobs:
            own = [f"{group}={job['names'][group]}" for group in swept]
            whole = by_hydra("config", [search, *TOY, *own], return_hydra_config=True)
            names = {k: v for k, v in whole.hydra.runtime.choices.items() if not k.startswith("hydra/")}
            assert job["names"] == names
            with open_dict(whole):
                del whole["hydra"]
            assert job["config"] == OmegaConf.to_container(whole, resolve=True) | {"tests": {}}


def test_the_command_prints_it_and_starts_nothing(tmp_path):
    done = forked.run(command("-m", "--estimate", "selector=gtp,random"), tmp_path, ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 jobs: 2 selectors") and "nothing was started" in done.stdout
    assert "gradient passes, rows x checkpoints: 94" in done.stdout  # (41 + 6) x 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["selector=gpt"], 1, "selector/gpt"),
        (["budget.amount=7"], 2, "budget.amount=7"),
        (["tests=[nosuch]"], 2, "there is no benchmark nosuch"),
        (["--config-dir=nosuch"], 2, "--config-dir nosuch is not a folder"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, overrides, code, named):
    done = forked.run(command("--estimate", *overrides), tmp_path, ENVIRONMENT)
    assert done.returncode == code and named in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_search_is_told_how_its_jobs_can_be_estimated():
    with pytest.raises(UserError, match="OptunaSweeper chooses .* estimate one of them: without -m"):
        compose("-m", "hparams_search=optuna")


OWN = ["dataset=jsonl", "dataset.files=[pool.jsonl]", "benchmark=jsonl", "benchmark.target=target.jsonl"]


@pytest.mark.parametrize(
    ("pool", "overrides", "told"),
    [
        ('{"prompt": "1 + 2?", "completion": "3"}\n' * 9, [], "benchmark.test=null, and until=evaluation"),
        ('{"prompt": "1 + 2?", "comp', ["until=selection"], "pool.jsonl:1 is not JSON"),
        ('{"question": "1 + 2?"}\n', ["until=selection"], "pool.jsonl:1 has the columns question"),
    ],
)
def test_what_a_job_refuses_at_once_has_no_price(tmp_path, monkeypatch, pool, overrides, told):
    monkeypatch.chdir(tmp_path)
    Path("target.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n')
    (job,) = compose(*OWN, *overrides)
    if overrides:  # the pool may lie on the machine that the job is meant for
        text = estimate([job["config"]], [job["names"]])
        assert "100,000 rows assumed, no such file: pool.jsonl" in text
    Path("pool.jsonl").write_text(pool)
    with pytest.raises(UserError, match=told):
        estimate([job["config"]], [job["names"]])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["until=selection,evaluation"], "benchmark.test=null, and until=evaluation"),
        (
            ["until=selection", "selector=given", "budget=all", "selector.file=a.txt,b.txt"],
            "1 of the 1 ids of selector.file=b.txt are not among",
        ),
    ],
)
def test_a_grid_has_no_price_where_a_later_job_is_refused_at_once(tmp_path, monkeypatch, overrides, told):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{i}", "prompt": f"{i} + 2?", "completion": f"{i + 2}"} for i in range(9)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("target.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n')
    Path("a.txt").write_text("p1\n")
    Path("b.txt").write_text("q1\n")
    jobs = compose("-m", *OWN, "model=tiny", *overrides)
    with pytest.raises(UserError, match=told):
        estimate([job["config"] for job in jobs], [job["names"] for job in jobs])


def test_composing_imports_no_torch():
    code = "import sys, gtp_exp.estimate.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "< 1 s"), (59, "59 s"), (600, "10.0 min"), (9000, "2.5 h"), (3e5, "3.5 days")]
)
def test_a_duration_is_written_for_people(seconds, text):
    assert estimated_time(seconds) == text


def test_counts_are_short():
    assert [with_unit_prefix(n).strip() for n in (12, 1234, 2.5e6, 3e9)] == ["12", "1.23 k", "2.5 M", "3 G"]


def test_jobs_are_plain_json():
    assert json.loads(json.dumps(compose("selector=random")))
