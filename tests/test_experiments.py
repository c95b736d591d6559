"""Every experiment preset: its sweep expands, every job builds, and a dry run says what it would compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from options import option

import gtp_exp.api.start  # noqa: F401  the configuration's `${home:...}` is its
from gtp_exp.config import build
from gtp_exp.data.generation import bundled_tasks
from gtp_exp.estimate.__main__ import estimate
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.estimate.walk import POOL, WARMUP, plan
from gtp_exp.leaderboard.comparability import flatten

CONF = Path(__file__).resolve().parents[1] / "conf"
NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ABLATIONS = [name for name in NAMES if name.startswith("ablation_") and name != "ablation_reference"]

_composed: dict[str, list] = {}


def jobs_of(name):
    """Composed once for all tests: the largest preset takes several seconds."""
    if name not in _composed:
        _composed[name] = compose_jobs([f"experiment={name}"], str(CONF))
    return _composed[name]


def configs(name):
    return [job["config"] for job in jobs_of(name)]


def with_tiny(name):
    models, tiny = ("model", "selection_model"), option("model", "tiny")
    return [{**c, **{key: tiny for key in models if key in c}} for c in configs(name)]


def values(name, key):
    return {flatten(config)[key] for config in configs(name)}


def options(name, group):
    return {job["names"][group] for job in jobs_of(name)}


@pytest.mark.parametrize("name", NAMES)
def test_every_job_builds_and_a_dry_run_tells_its_size(name):
    names = [job["names"] for job in jobs_of(name)]
    bundled_tasks.cache_clear()
    text = estimate(configs(name), names)
    assert bundled_tasks.cache_info().misses == 0  # lm-eval would read 14,000 files for seconds
    assert text.startswith(f"{len(names)} jobs: ") and text.endswith("nothing was started")
    assert "\ntotal " in text and "\npool " in text and "\nbenchmark " in text


def test_a_model_on_the_command_line_replaces_the_presets():
    found = compose_jobs(["experiment=demo", "model=tiny"], str(CONF))
    tiny = option("model", "tiny")
    changed = {**tiny, "system_prompt": "", "lora": {**tiny["lora"], "last_layers": 15}}
    assert [job["config"]["model"] for job in found] == [changed] * 3
    assert [job["config"] | {"model": None} for job in found] == [
        config | {"model": None} for config in configs("demo")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_into_a_folder_of_its_own_name(name):
    """So that the leaderboard command in its head is right."""
    raw = (CONF / "experiment" / f"{name}.yaml").read_text()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [f"experiment={name}"], return_hydra_config=True)
    # Hydra makes this folder before its resolver `hydra:` works.
    assert composed.hydra.sweep.dir == f"outputs/runs/{name}"
    if name != "demo":
        head = raw.split("defaults:")[0]
        assert f"gtp-exp -m experiment={name}\n" in head and f"outputs/runs/{name}" in head


@pytest.mark.parametrize("name", NAMES)
def test_no_two_jobs_of_a_preset_are_the_same(name):
    found = [str(config) for config in configs(name)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_job_builds_with_the_tiny_model_and_they_share_one_trajectory_per_setting(name):
    """A warm-up or a store for each selector would be another experiment, and many times the cost."""
    jobs = with_tiny(name)
    planned = plan(jobs)
    settings = {(c["gradients"]["warmup"]["epochs"], c["gradients"]["seed"]) for c in jobs}
    assert len(planned.of(WARMUP)) == len(planned.of(POOL)) == len(settings)


# The paper's and the published settings


@pytest.mark.parametrize("name", ["paper_target_domain", "paper_in_domain"])
def test_the_papers_grids_hold_the_main_selectors_the_three_budgets_and_three_seeds(name):
    assert values(name, "budget.amount") == {"0.005", "0.01", "0.05"}
    assert values(name, "seed") == {"0", "1", "2"}
    assert {
        "gtp",
        "less",
        "top_k",
        "grad_match_omp",
        "gist",
        "rds_plus",
        "bm25",
        "random",
        "full",
    } <= options(name, "selector")
    assert options(name, "dataset") == {"less_mixture"}
    benchmarks = {"paper_target_domain": {"mmlu", "bbh", "tydiqa"}, "paper_in_domain": {"pool_held_out"}}
    assert options(name, "benchmark") == benchmarks[name]
    assert len(jobs_of(name)) == len(options(name, "selector")) * 9 * len(benchmarks[name])


def test_less_original_has_the_published_settings():
    published = {
        "model.name_or_path": "meta-llama/Llama-2-7b-hf",
        "model.precision": "bf16",
        "model.max_length": "2048",
        "dataset.over_length": "cut",
        "model.lora.r": "128",
        "model.lora.alpha": "512",
        "model.lora.dropout": "0.1",
        "model.lora.target_modules": '["q_proj", "k_proj", "v_proj", "o_proj"]',
        "gradients.warmup_share": "0.05",
        "gradients.sketch.kind": "rademacher",
        "gradients.sketch.dim": "8192",
        "budget.amount": "0.05",
    }
    for part in ("gradients.warmup", "train"):
        published |= {
            f"{part}.epochs": "4",
            f"{part}.learning_rate": "2e-05",
            f"{part}.schedule": "linear",
            f"{part}.warmup_ratio": "0.03",
            f"{part}.weight_decay": "0",
            f"{part}.batch_size": "128",
            f"{part}.loss": "example_mean",
            f"{part}.use_weights": "false",
        }
    for key, value in published.items():
        assert values("less_original", key) == {value}, key
    less = next(c for c in configs("less_original") if "LESS" in c["selector"]["_target_"])
    assert less["selector"]["direction"] == "less" and less["selector"]["target_direction"] == "sgd"
    assert less["selector"]["aggregation"] == "max_subtask"
    shots = {c["benchmark"]["names"][0]: c["benchmark"] for c in configs("less_original")}
    assert {name: (b["target_rows"], b["num_fewshot"]) for name, b in shots.items()} == {
        "mmlu": (5, 5),
        "bbh_cot_fewshot": (3, 3),
        "tydiqa_goldp": (1, 1),
    }
    means = {name: b["mean"] for name, b in shots.items() if name != "bbh_cot_fewshot"}  # of equal tasks
    assert means == {"mmlu": "rows", "tydiqa_goldp": "tasks"}


def test_date_lm_has_the_settings_of_its_leaderboard():
    assert values("date_lm_finetune", "model.name_or_path") == {"meta-llama/Llama-3.1-8B"}
    assert values("date_lm_finetune", "dataset.rows") == {"200000"}
    assert values("date_lm_finetune", "dataset.over_length") == {"cut"}
    assert values("date_lm_finetune", "budget.unit") == {"rows"}
    assert values("date_lm_finetune", "budget.amount") == {"10000"}
    for part in ("gradients.warmup", "train"):
        published = {
            "epochs": "2",
            "learning_rate": "2e-05",
            "schedule": "cosine",
            "warmup_ratio": "0.015",  # 0.03 of one of the two epochs
            "weight_decay": "0",
            "max_grad_norm": "1000000000",  # none
            "batch_size": "128",
            "loss": "example_mean",
        }
        for key, value in published.items():
            assert values("date_lm_finetune", f"{part}.{key}") == {value}, key
    shots = {c["benchmark"]["names"][0]: c["benchmark"]["num_fewshot"] for c in configs("date_lm_finetune")}
    assert shots == {"mmlu": 0, "gsm8k_cot": 8, "bbh_cot_fewshot": 3}
    means = {c["benchmark"]["names"][0]: c["benchmark"]["mean"] for c in configs("date_lm_finetune")}
    assert means["mmlu"] == "rows" and means["bbh_cot_fewshot"] == "tasks"


# Ablations


def unseeded(config):
    """Return the config without what varies with the seed alone."""
    gradients = {key: value for key, value in config["gradients"].items() if key != "seed"}
    return {k: v for k, v in config.items() if k != "seed"} | {"gradients": gradients}


@pytest.mark.parametrize("name", NAMES)
def test_every_seed_has_a_trajectory_of_its_own(name):
    assert all(c["gradients"]["seed"] == c["seed"] for c in configs(name))


def settings_of(config):
    """Return the config's values by dotted key; a solver and its options are one setting."""
    flat = {key: value for key, value in flatten(config).items() if not key.startswith("selector.solver.")}
    if "solver" in config["selector"]:
        flat["selector.solver"] = str(config["selector"]["solver"])
    return flat


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_factor_and_holds_its_default(name):
    flat = [settings_of(unseeded(c)) for c in configs(name)]
    gtp = [f for f in flat if f["selector._target_"].endswith("GTP")]
    factors = {key for key in gtp[0] if len({f[key] for f in gtp}) > 1}
    assert len(factors) == 1, factors
    (factor,) = factors
    (reference,) = {
        settings_of(c)[factor]
        for c in configs("ablation_reference")
        if c["selector"]["_target_"].endswith("GTP")
    }
    assert reference in {f[factor] for f in gtp}


def test_the_ablations_cover_the_factors_of_the_method():
    factors = set()
    for name in ABLATIONS:
        flat = [settings_of(unseeded(c)) for c in configs(name) if c["selector"]["_target_"].endswith("GTP")]
        factors |= {key for key in flat[0] if len({f[key] for f in flat}) > 1}
    assert factors == {
        "gradients.warmup.epochs",
        "train.use_weights",
        *(
            f"selector.{key}"
            for key in (
                *("subspace", "subspace_dim", "direction", "normalise", "regularisation", "ridge"),
                *("near_copy_cosine", "solver", "target_columns", "checkpoints", "collapse_copies"),
                "metric",
            )
        ),
    }


def test_the_ablations_differ_from_the_reference_in_nothing_else():
    (reference,) = {str(unseeded(c) | {"selector": None}) for c in configs("ablation_reference")}
    for name in ABLATIONS:
        if name not in ("ablation_trajectory_length", "ablation_weights"):
            assert {str(unseeded(c) | {"selector": None}) for c in configs(name)} == {reference}, name


def test_every_option_of_a_factor_is_swept():
    from gtp_exp.gradients.directions import Direction
    from gtp_exp.selection.atoms.metric import Metric
    from gtp_exp.selection.atoms.sketches import Normalise
    from gtp_exp.selection.atoms.subspace import Subspace
    from gtp_exp.selection.gtp import Regularisation, TargetColumns

    for name, key, kind in [
        ("ablation_subspace", "subspace", Subspace),
        ("ablation_direction", "direction", Direction),
        ("ablation_normalise", "normalise", Normalise),
        ("ablation_metric", "metric", Metric),
        ("ablation_ridge", "regularisation", Regularisation),
        ("ablation_target_columns", "target_columns", TargetColumns),
    ]:
        assert values(name, f"selector.{key}") == {member.value for member in kind}, name
    solvers = [yaml.safe_load(path.read_text()) for path in (CONF / "selector" / "solver").glob("*.yaml")]
    assert values("ablation_solver", "selector.solver._target_") == {node["_target_"] for node in solvers}


def test_the_weights_ablation_trains_with_the_solutions_weights():
    built = [
        build(c["selector"], "selector") for c in configs("ablation_weights") if "GTP" in str(c["selector"])
    ]
    assert {selector.weighting.value for selector in built} == {"solution"}
    assert values("ablation_weights", "train.use_weights") == {"true", "false"}
