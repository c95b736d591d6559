"""The stages asked of a cache that makes nothing: their keys are known before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from stage_changes import ALL
from test_experiment import ROOT, TOY, run

from gtp_exp.estimate.walk import CacheThatOnlyLooks
from gtp_exp.experiment import prepare_models
from gtp_exp.inputs import load_inputs
from gtp_exp.stages.evaluation import EvaluatedModel, evaluate_task
from gtp_exp.stages.gradients import GradientStores, collect_gradients, rows_with_gradients
from gtp_exp.stages.runner import StageRunner
from gtp_exp.stages.selection import SelectionSources, select
from gtp_exp.stages.training import tune, warm_up
from gtp_exp.tracking import Journal, NoTracker
from gtp_exp.worker import assemble


def walk(outputs: Path, *overrides: str):
    """Go through the stages of a job without its files; return the costs by stage."""
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", [search, *TOY, f"outputs={outputs}", "budget=10pct", *overrides])
    job = assemble(OmegaConf.to_container(composed, resolve=True))
    cache = CacheThatOnlyLooks(outputs / "cache")
    runner = StageRunner(cache, Journal(None, NoTracker()))
    tuned_model, chooser = prepare_models(job.model, job.selection_model, cache, torch.device("cpu"))
    inputs = load_inputs(job.dataset, job.benchmark, tuned_model, chooser)
    trajectory = warm_up(runner, chooser, inputs.candidates_to_select, job.gradients)
    stores = [
        collect_gradients(runner, chooser, split, rows, trajectory, job.gradients)
        for split, rows in rows_with_gradients(inputs, job.selector)
    ]
    sources = SelectionSources(chooser, tuned_model, inputs, GradientStores(*stores))
    selected = select(runner, sources, job.selector, job.budget, job.settings.seed)
    tuned = tune(runner, tuned_model, inputs.candidates, selected, job.train, job.settings.seed)
    for evaluated in (EvaluatedModel(tuned_model, tuned), EvaluatedModel(tuned_model, None)):
        for test in inputs.tasks:
            evaluate_task(runner, evaluated, test, job.settings.eval_batch_size)
    return runner.costs


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def computed(outputs):
    return run(outputs, "selector=less")


def test_the_keys_are_those_of_the_job_and_nothing_is_made(computed, tmp_path):
    costs = walk(tmp_path, "selector=less")
    assert {stage: cost.key for stage, cost in costs.items()} == {
        stage: cost.key for stage, cost in computed.stages.items()
    }
    assert set(costs) == ALL and not any(cost.cached for cost in costs.values())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["models"]


def test_what_is_there_is_found_with_its_seconds(computed, outputs):
    costs = walk(outputs, "selector=less")
    assert all(cost.cached for cost in costs.values())
    assert {stage: cost.seconds for stage, cost in costs.items()} == {
        stage: cost.seconds for stage, cost in computed.stages.items()
    }
    missing = {stage for stage, cost in walk(outputs, "selector=less", "seed=1").items() if not cost.cached}
    assert missing == {"selection", "finetune", "evaluation"}
