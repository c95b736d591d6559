"""The whole pipeline on the tiny model: what is computed once, what is computed again, what a run leaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from stage_changes import ALL, CHANGES
from toy import TOY
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtp_baselines.bm25 import BM25
from gtp_exp import experiment
from gtp_exp.data import tokenization
from gtp_exp.errors import UserError
from gtp_exp.gradients.checkpoints import load_checkpoint
from gtp_exp.leaderboard.metrics import n_test_rows
from gtp_exp.records.record import State, TrainingLength
from gtp_exp.stages.passes import KeptPasses
from gtp_exp.worker import _begin, assemble

ROOT = Path(__file__).resolve().parents[1]
JOB = {"name": "job", "group": "group", "overrides": []}
GROUPS = ("selector", "budget", "benchmark", "dataset", "model", "gradients", "train")


def composed(outputs, *overrides):
    """The resolved configuration of a job."""
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [search, *TOY, f"outputs={outputs}", "budget=10pct", *overrides])
        return OmegaConf.to_container(config, resolve=True)


def run(outputs, *overrides, directory=None):
    """One job in this process, as the worker runs it."""
    directory = directory or outputs / "run"
    directory.mkdir(parents=True, exist_ok=True)
    config = composed(outputs, *overrides)
    names = dict.fromkeys(GROUPS, "toy")
    record = _begin(config, {**JOB, "names": names})
    return experiment.run(assemble(config), record, directory, JOB)


def computed(record):
    return {name for name, cost in record.stages.items() if not cost.cached}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(outputs):
    return run(outputs, "selector=less")


def test_a_run_goes_through_every_stage_and_reports_it(first):
    assert computed(first) == ALL
    assert first.pool.rows == 41 and first.pool.candidates == 40 and sum(first.pool.excluded.values()) == 1
    assert first.selection.n_selected == 4
    assert set(first.metrics) == set(first.untuned) == {"toy_sums"}
    assert first.metrics["toy_sums"]["nats_per_token"] != first.untuned["toy_sums"]["nats_per_token"]


def test_the_record_says_how_long_the_training_was(first, outputs):
    """4 rows in batches of 4 are one step an epoch."""
    assert first.training == TrainingLength(epochs=1, steps=1)
    longer = run(outputs, "selector=less", "train.min_steps=7")
    assert longer.training == TrainingLength(epochs=7, steps=7)
    assert longer.metrics != first.metrics
    assert run(outputs, "selector=less", "until=selection").training is None


def test_the_same_run_again_computes_nothing_and_finds_the_same(first, outputs):
    again = run(outputs, "selector=less")
    assert computed(again) == set()
    assert again.metrics == first.metrics and again.selection == first.selection
    assert {k: v.seconds for k, v in again.stages.items()} == {k: v.seconds for k, v in first.stages.items()}


@pytest.mark.parametrize(("override", "expected"), CHANGES)
def test_a_change_recomputes_what_depends_on_it_and_nothing_else(first, outputs, override, expected):
    assert computed(run(outputs, "selector=less", override)) == expected


def test_the_gradient_engine_is_compared_with_autograd_once_in_a_job(tmp_path, caplog):
    """Before the first gradients that it computes: of pool and target together, or of a new target alone."""
    for change, split in ([], "pool"), (["benchmark.target_rows=5"], "target"):
        caplog.clear()
        with caplog.at_level("INFO"):
            run(tmp_path, "selector=less", "until=selection", *change)
        told = [r.getMessage() for r in caplog.records if r.name == "gtp_exp.gradients.collect"]
        assert [line for line in told if line.startswith("comparing")] == told[:1]
        assert told[1].startswith(f"{split} gradients")


# What each stage's key is made of. A name more, or less, and no earlier entry is found again.
READS = {
    "warmup": {"model", "pool", "share", "train", "seed"},
    "gradients: pool": {"warmup", "split", "rows", "settings"},
    "gradients: target": {"warmup", "split", "rows", "settings"},
    "selection": {"selector", "version", "budget", "seed", "model", "pool", "target", "gradients"},
    "finetune": {"selection", "model", "train", "seed"},
    "evaluation": {"tuned", "model", "task", "held_out"},
    "evaluation of the untuned model": {"tuned", "model", "task", "held_out"},
}


def test_a_stages_key_is_made_of_what_it_reads_and_nothing_else(outputs, first):
    reads = {}
    for stage, cost in first.stages.items():
        (manifest,) = (outputs / "cache").glob(f"*/{cost.key}/manifest.json")
        reads[stage] = json.loads(manifest.read_text())["reads"]
    assert {stage: set(names) - {"libraries"} for stage, names in reads.items()} == READS
    keys = {stage: cost.key for stage, cost in first.stages.items()}
    stores = [keys["gradients: pool"], keys["gradients: target"]]
    assert reads["gradients: pool"]["warmup"] == reads["gradients: target"]["warmup"] == keys["warmup"]
    assert reads["selection"]["gradients"] == stores and reads["selection"]["pool"] == first.pool.content
    assert reads["finetune"]["selection"] == keys["selection"]
    assert reads["evaluation"]["tuned"] == keys["finetune"]
    assert reads["evaluation of the untuned model"]["tuned"] is None


def test_a_row_is_tokenised_once_for_a_model(tmp_path, monkeypatch):
    rendered = Counter()
    render = tokenization.render
    monkeypatch.setattr(
        tokenization,
        "render",
        lambda row, tokenizer: rendered.update([row] * bool(row.id)) or render(row, tokenizer),
    )
    record = run(tmp_path, "selector=less")
    assert rendered.total() == 41 + record.rows["target"].used + record.rows["toy_sums"].used
    assert set(rendered.values()) == {1}


def test_a_selector_that_needs_no_gradients_computes_none(outputs, first):
    record = run(outputs, "selector=random")
    assert {"warmup", "gradients: pool"}.isdisjoint(record.stages)


@pytest.mark.parametrize("engine", ["auto", "packed", "hooks"])
def test_adapters_without_an_exact_engine_are_refused_before_the_warm_up(tmp_path, engine):
    job = ["selector=less", "model.lora.target_modules=[q_proj,embed_tokens]", f"gradients.engine={engine}"]
    with pytest.raises(UserError, match="embed_tokens.*model.lora.target_modules.*gradients.engine=autograd"):
        run(tmp_path, *job)
    assert not list((tmp_path / "cache" / "warmup").glob("*/manifest.json"))
    assert not list((tmp_path / "cache" / "warmup").glob("*.part/**/*.safetensors"))


def test_the_engine_that_the_refusal_names_takes_these_adapters(tmp_path):
    job = ["selector=less", "model.lora.target_modules=[q_proj,embed_tokens]", "gradients.engine=autograd"]
    assert run(tmp_path, *job, "until=selection").selection.n_selected == 4


def test_an_in_domain_run_needs_no_target_rows(outputs, first):
    record = run(outputs, "selector=less", "benchmark.in_domain=true")
    assert "gradients: target" not in record.stages and record.selection.n_selected == 4


def test_rows_held_out_of_the_pool_are_tested_and_never_chosen(outputs):
    record = run(outputs, "selector=less", "benchmark=pool_held_out", "benchmark.test_rows=8")
    assert "gradients: target" not in record.stages
    assert record.pool.candidates == 32 and record.pool.excluded["held out for the test"] == 8
    assert record.leakage["pool"]["same_prompt"] == record.leakage["selected"]["same_prompt"] == 0
    (metrics,) = record.metrics.values()
    assert set(record.metrics) == {"pool_held_out"} and metrics["headline"] == "nats_per_token"
    assert metrics["nats_per_token"] != record.untuned["pool_held_out"]["nats_per_token"]
    whole = run(outputs, "selector=full", "benchmark=pool_held_out", "benchmark.test_rows=8")
    assert whole.selection.n_selected == 32
    assert whole.metrics["pool_held_out"]["nats_per_token"] < whole.untuned["pool_held_out"]["nats_per_token"]


def test_another_release_of_a_selectors_library_chooses_again(outputs, monkeypatch):
    def chosen():
        return run(outputs, "selector=bm25", "until=selection").stages["selection"]

    first, again = chosen(), chosen()
    monkeypatch.setattr(BM25, "reads", lambda self: {"bm25s": "99"})
    other = chosen()
    assert again.cached and first.key == again.key != other.key


def test_a_selector_that_ignores_the_budget_is_computed_once(outputs):
    run(outputs, "selector=full", "budget=5pct")
    assert computed(run(outputs, "selector=full", "budget=10pct")) == set()


def test_a_row_without_completion_is_never_chosen(outputs):
    record = run(outputs, "selector=full", "budget=100pct")
    assert record.selection.n_selected == 40 and "row-40" not in record.selection.indices_ids


def test_full_fine_tuning_goes_through_the_same_pipeline(outputs):
    record = run(outputs, "selector=less", "model.lora=null", "train.learning_rate=1e-3")
    assert record.metrics["toy_sums"]["nats_per_token"] < record.untuned["toy_sums"]["nats_per_token"]


def test_weights_reach_training_when_asked(outputs, monkeypatch, tmp_path):
    from gtp_baselines.random import Random
    from gtp_exp.selection.base import Selection

    def weighted(self, problem):
        selection = original(self, problem)
        weights = selection.weights.clone()
        weights[0] = 5.0
        return Selection(selection.indices, weights / weights.mean(), selection.scores)

    original = Random.select
    monkeypatch.setattr(Random, "select", weighted)
    monkeypatch.setattr(Random, "version", 99)
    losses = [
        run(outputs, "selector=random", f"train.use_weights={flag}").metrics["toy_sums"]["nats_per_token"]
        for flag in ("false", "true")
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.epochs=many", "train.epochs"),
        ("~budget.amount", "budget.amount"),  # other classes have a default
        ("+train.lrr=1", "train.lrr"),
        ("seed=x", "^seed should be int"),
        ("model.max_length=4", "model.max_length"),
        ("gradients.sketch.kind=fft", "gradients.sketch.kind"),
        ("gradients.warmup.epochs=0", "epochs"),
        ("gradients.directions=[sgd,newton]", r"gradients.directions\[1\]"),
    ],
)
def test_a_wrong_value_is_named(outputs, override, named):
    with pytest.raises(UserError, match=named):
        run(outputs, "selector=random", override)


def test_a_budget_above_the_pool_is_refused_with_the_numbers(outputs):
    with pytest.raises(UserError, match="41 rows.*40 candidates"):
        run(outputs, "selector=random", "budget=rows", "budget.amount=41")


def test_a_target_without_rows_is_refused(outputs):
    with pytest.raises(UserError, match="target has no row"):
        run(outputs, "selector=less", "benchmark.target_rows=0")


def test_token_budgets_are_exact_bounds(outputs):
    record = run(outputs, "selector=random", "budget=tokens", "budget.amount=150")
    assert 0 < record.selection.n_tokens <= 150


def test_the_run_directory_explains_itself(first, outputs):
    directory = outputs / "run"
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {"stage", "selection", "evaluation", "finetune", "warmup"} <= {e["kind"] for e in events}
    assert (directory / "selected" / "README.md").is_file()
    assert replace(first, state=State.COMPLETE).to_json()["state"] == "complete"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["selector.direction=adma"], "selector.direction=adma"),
        (["budget=rows", "budget.amount=500"], "500 rows"),
        (["seed=-1"], "seed=-1"),
        (["eval_batch_size=0"], "eval_batch_size=0"),
        (["eval_backend=vllm"], "eval_backend=vllm is not implemented"),
        (["gradients.warmup.use_weights=true"], "use_weights"),
        (["benchmark=jsonl_choice", "benchmark.test=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_bad_input_is_refused_before_any_long_work(tmp_path, overrides, named):
    validation = tmp_path / "validation.jsonl"
    messages = [{"role": "user", "content": "One plus one?"}, {"role": "assistant", "content": "2"}]
    validation.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    if overrides[0].startswith("benchmark"):
        overrides = [*overrides, f"benchmark.validation={validation}"]
    with pytest.raises(UserError, match=re.escape(named)):
        run(tmp_path, "selector=gtp", *overrides)
    assert {path.parts[-3] for path in tmp_path.glob("cache/*/*/manifest.json")} <= {"models"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["selector=random"], r"^train.batch_size=4 cannot .* launch.num_processes=3; use 3 or"),
        (
            ["selector=gtp", "train.batch_size=6", "train.micro_batch_size=1"],
            r"^gradients.warmup.batch_size=4 cannot .* launch.num_processes=3; use 3 or",
        ),
        (["selector=random", "until=selection"], None),
        (["selector=random", "train.batch_size=6", "train.micro_batch_size=1"], None),
    ],
)
def test_batches_that_processes_cannot_divide_are_refused_before_any_work(tmp_path, overrides, told):
    config = composed(tmp_path, "launch.num_processes=3", *overrides)
    if told is None:
        assemble(config)
    else:
        with pytest.raises(UserError, match=told):
            assemble(config)


def test_the_record_counts_rows_left_out_and_names_precision(outputs, first):
    assert first.rows["toy_sums"].used == first.config["benchmark"]["test_rows"]
    assert n_test_rows(first, "toy_sums") == first.config["benchmark"]["test_rows"]
    assert first.rows["target"].left_out == {} and first.rows["target"].cut == 0
    assert first.model["dtype"] in ("float32", "bfloat16") and first.model["device"] == "cpu"


def test_a_row_that_does_not_fit_is_counted(tmp_path):
    found = run(tmp_path, "selector=full", "budget=100pct", "model.max_length=43", "dataset.over_length=cut")
    assert found.pool.cut == found.selection.n_cut > 0
    dropped = run(tmp_path, "selector=full", "budget=100pct", "model.max_length=43")
    assert dropped.pool.excluded["longer than model.max_length"] == found.pool.cut
    assert dropped.pool.cut == dropped.selection.n_cut == 0


def test_a_run_until_selection_trains_nothing(outputs, first):
    found = run(outputs, "selector=less", "until=selection")
    assert found.metrics == {} and found.selection.indices_ids == first.selection.indices_ids
    assert not set(found.stages) & {"finetune", "evaluation"}


def test_a_pass_of_the_model_is_shared_by_budgets_and_selectors(outputs, first):
    def passes():
        return sorted(path.name for path in (outputs / "cache" / "pass").glob("*") if path.is_dir())

    before = run(outputs, "selector=perplexity_top")
    kept = passes()
    assert len(kept) == 1 and before.stages["selection"].seconds > 0
    again = run(outputs, "selector=perplexity_top", "budget=5pct")
    other = run(outputs, "selector=perplexity_middle")
    assert passes() == kept
    manifest = json.loads((outputs / "cache" / "pass" / kept[0] / "manifest.json").read_text())
    for record in (again, other):  # what the pass has cost counts for each of them
        assert "selection" in computed(record)
        assert record.stages["selection"].seconds > manifest["seconds"]


def test_a_pass_made_before_an_interruption_is_counted_once(tmp_path):
    interrupted, other = tmp_path / "interrupted", tmp_path / "other"
    for folder in (interrupted, other):
        folder.mkdir()
    for folder, counted in ((interrupted, False), (interrupted, False), (other, True)):
        passes = KeptPasses(tmp_path, {}, folder)
        passes("mean", {}, lambda: torch.zeros(3))
        assert (passes.saved_seconds > 0) == counted


def test_one_model_chooses_for_another(outputs, first):
    same = run(outputs, "selector=less", "model@selection_model=tiny", "seed=7")
    assert computed(same) == {"selection", "finetune", "evaluation"}
    assert same.selection.indices_ids == first.selection.indices_ids
    smaller = run(outputs, "selector=less", "model@selection_model=tiny", "selection_model.lora.r=2")
    assert computed(smaller) == ALL - {"evaluation of the untuned model"}
    assert smaller.model == first.model and smaller.selection_model["lora"]["r"] == 2
    assert first.selection_model is None


def test_a_row_that_either_model_cannot_read_is_no_candidate(outputs):
    found = run(
        outputs,
        "selector=random",
        "model@selection_model=tiny",
        "selection_model.max_length=40",
        "dataset.over_length=cut",
    )
    whole = run(outputs, "selector=random")
    assert 0 < found.pool.candidates < whole.pool.candidates
    assert found.pool.candidates + sum(found.pool.excluded.values()) == found.pool.rows


def poisoned_model(folder, tiny_location, token):
    """The tiny model with an output head of its own, and no finite embedding for one token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_location)
    tokenizer = AutoTokenizer.from_pretrained(tiny_location)
    head = model.get_input_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        (index,) = tokenizer(token, add_special_tokens=False).input_ids
        model.get_input_embeddings().weight[index] = float("inf")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["model.source=hub", f"model.name_or_path={folder}", "gradients.seed=5"]


def test_rows_without_a_finite_gradient_are_named_and_never_chosen(tmp_path, tiny, caplog):
    model = poisoned_model(
        tmp_path / "poisoned", tiny.location, "8"
    )  # with this seed in no row of the warm-up
    found = run(tmp_path, "selector=gtp", *model, "gradients.max_quarantined_share=0.2", "until=selection")
    ids = [f"row-{i}" for i in (8, 9, 18, 19, 28, 29, 38, 39)]  # those with an "8"
    assert found.selection.diagnostics["quarantined_ids"] == ids
    assert found.selection.n_selected == 4 and not set(ids) & set(found.selection.indices_ids)
    assert "8 of 40 pool rows is not finite: row-8, row-9" in caplog.text
    with pytest.raises(UserError, match="row-8.*max_quarantined_share=0.1 allows fewer"):
        run(tmp_path, "selector=gtp", *model, "gradients.max_quarantined_share=0.1", "until=selection")


def test_the_end_of_turn_in_the_target_has_a_weight_of_its_own(outputs, first):
    whole = run(outputs, "selector=top_k")
    assert computed(run(outputs, "selector=top_k", "selector.target_end_of_turn=1.0")) == set()
    without = run(outputs, "selector=top_k", "selector.target_end_of_turn=0.0")
    half = run(outputs, "selector=top_k", "selector.target_end_of_turn=0.5")
    balanced = run(outputs, "selector=top_k", "selector.target_end_of_turn=balanced")
    keys = [record.stages["gradients: target"].key.split() for record in (whole, without, half, balanced)]
    assert [len(key) for key in keys] == [1, 1, 2, 2] and keys[2] == keys[3]
    assert keys[0] != keys[1] == keys[2][:1]
    assert without.stages["gradients: target"].cached  # the content of `first`, which is LESS's
    assert len({record.stages["selection"].key for record in (whole, without, half, balanced)}) == 4


def test_a_weight_of_the_end_of_turn_that_cannot_be_used_is_refused_before_any_work(tmp_path):
    overrides = ["selector=gtp", "selector.target_direction=adam", "selector.target_end_of_turn=0.5"]
    with pytest.raises(UserError, match="selector.target_direction=adam does not allow"):
        run(tmp_path, *overrides)
    assert not (tmp_path / "cache").exists()


def test_the_untuned_model_may_begin_the_trajectory(tmp_path):
    plain = run(tmp_path / "plain", "selector=less", "until=selection")
    longer = run(tmp_path / "longer", "selector=less", "until=selection", "gradients.untuned_checkpoint=true")
    (without,) = (tmp_path / "plain" / "cache" / "warmup").glob("*/trajectory.json")
    (beside,) = (tmp_path / "longer" / "cache" / "warmup").glob("*/trajectory.json")
    names = json.loads(beside.read_text())
    assert len(names) == len(json.loads(without.read_text())) + 1
    untuned = load_file(beside.parent / names[0] / "trainable.safetensors")
    assert all(not value.any() for name, value in untuned.items() if "lora_B" in name)
    assert any(value.any() for name, value in untuned.items() if "lora_A" in name)
    moments = load_file(beside.parent / names[0] / "moments.safetensors")
    assert not any(value.any() for value in moments.values())
    begin, first = (load_checkpoint(beside.parent / name) for name in names[:2])
    assert begin.step == 0 and begin.learning_rate == first.learning_rate > 0
    for name in ("trainable.safetensors", "moments.safetensors"):  # the warm-up itself is the same
        assert (beside.parent / names[1] / name).read_bytes() == (
            without.parent / "checkpoint-0" / name
        ).read_bytes()
    assert plain.stages["warmup"].key != longer.stages["warmup"].key
