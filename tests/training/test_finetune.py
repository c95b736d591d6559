"""Fine-tuning: completion-only loss, weights and batches mean what they say, a killed run goes on."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import replace
from statistics import mean

import pytest
import torch
from recorded_steps import step_gradients
from reliability.damage import Way, damage

from gtp_exp.data.examples import IGNORE
from gtp_exp.errors import UserError
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import BatchLoss, Optimizer, Schedule, TrainConfig
from gtp_exp.training.finetune import finetune
from gtp_exp.training.hooks import Hooks
from gtp_exp.training.resume import resumable

CONFIG = TrainConfig(
    epochs=2,
    learning_rate=1e-2,
    schedule=Schedule.LINEAR,
    warmup_ratio=0.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    batch_size=8,
    micro_batch_size=8,
    use_weights=False,
)


def tune(tiny, rows, directory, config=CONFIG, seed=0, **kwargs):
    directory.mkdir(exist_ok=True)
    loaded = tiny.load_trainable(seed)
    finetune(loaded, TrainingRows(rows), config, directory, **{"seed": seed, "label": "test", **kwargs})
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters() if p.requires_grad}


def curve(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_training_lowers_the_loss_and_records_the_curve(tiny, tokenized, tmp_path):
    tune(tiny, tokenized, tmp_path, replace(CONFIG, epochs=6))
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(history) == 6 * 3
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tiny, tokenized, tmp_path):
    a, b, c = (tune(tiny, tokenized, tmp_path / str(i), seed=s) for i, s in enumerate([0, 0, 1]))
    assert distance(a, b) == 0
    assert distance(a, c) > 1e-3


def test_min_steps_repeats_whole_epochs_under_one_schedule(tiny, tokenized, tmp_path):
    """20 rows in batches of 8 are 3 steps an epoch: 7 steps need 3 epochs, as `epochs=3` trains them."""
    rows = tokenized[:20]
    longer = tune(tiny, rows, tmp_path / "min_steps", replace(CONFIG, epochs=2, min_steps=7))
    assert distance(longer, tune(tiny, rows, tmp_path / "epochs", replace(CONFIG, epochs=3))) == 0
    assert len(curve(tmp_path / "min_steps")) == 9
    assert curve(tmp_path / "min_steps")[-1]["learning_rate"] == pytest.approx(CONFIG.learning_rate / 9)


@pytest.mark.parametrize(
    ("epochs", "min_steps", "n_rows", "trained"),
    [(4, 0, 1, 4), (4, 12, 24, 4), (4, 13, 24, 5), (1, 100, 8, 100), (1, 100, 9, 50), (2, 100, 6000, 2)],
)
def test_min_steps_counts_the_optimizer_steps_of_whole_epochs(epochs, min_steps, n_rows, trained):
    assert replace(CONFIG, epochs=epochs, min_steps=min_steps).epochs_of(n_rows) == trained


def test_min_steps_is_in_the_key_only_where_it_is_set():
    assert "min_steps" not in CONFIG.reads()
    assert replace(CONFIG, min_steps=7).reads() == {**CONFIG.reads(), "min_steps": 7}
    with pytest.raises(UserError, match="min_steps=-1"):
        replace(CONFIG, min_steps=-1)
    with pytest.raises(UserError, match="raise gradients.warmup.epochs"):
        GradientConfig(warmup=replace(CONFIG, min_steps=7))


def test_accumulation_changes_nothing(tiny, tokenized, tmp_path):
    whole = tune(tiny, tokenized, tmp_path / "a")
    parts = tune(tiny, tokenized, tmp_path / "b", replace(CONFIG, micro_batch_size=2))
    assert distance(whole, parts) < 1e-5


def test_accumulation_changes_nothing_where_the_model_takes_no_arguments_for_its_loss(
    tiny, tokenized, tmp_path, monkeypatch
):
    """Of such a model Trainer would divide our loss by the number of passes."""
    whole = tune(tiny, tokenized, tmp_path / "a")
    monkeypatch.setattr("transformers.LlamaForCausalLM.accepts_loss_kwargs", False, raising=False)
    parts = tune(tiny, tokenized, tmp_path / "b", replace(CONFIG, micro_batch_size=2))
    assert distance(whole, parts) < 1e-5


def gradient(tiny, rows, weights, loss, directory, batch_size):
    """What training on `rows` sums up in one epoch."""
    config = replace(
        CONFIG, epochs=1, batch_size=batch_size, micro_batch_size=1, max_grad_norm=1e9, loss=loss
    )
    return sum(step_gradients(tiny, TrainingRows(rows, weights), config, directory))


@pytest.mark.parametrize(
    ("loss", "reduction", "batch_size"),
    [
        *((BatchLoss.EXAMPLE_MEAN, Reduction.MEAN, n) for n in (1, 3, 20)),
        (BatchLoss.TOKEN_MEAN, Reduction.SUM, 20),  # smaller batches have other numbers of tokens
    ],
)
def test_the_weighted_gradient_is_the_combination_the_weights_were_fitted_for(
    tiny, tokenized, tmp_path, loss, reduction, batch_size
):
    """sum_i w_i g_i with g_i the gradients that selectors see, whatever the rows' lengths and the batches."""
    rows = tokenized[:6]
    weights = torch.tensor([3.0, 0.2, 0.0, 1.5, 0.3, 1.0])
    found = gradient(tiny, rows, weights, loss, tmp_path / "run", batch_size)
    model = tiny.load_trainable(0).model
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = 0
    for row, weight in zip(rows, weights, strict=True):
        g = reference_gradients(model, parameters, row, reduction)
        expected = expected + weight * torch.cat([x.flatten() for x in g.values()])
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.99999


def test_a_batch_of_small_weights_takes_a_small_step(tiny, tokenized, tmp_path):
    small = gradient(tiny, tokenized[:1], torch.tensor([0.1]), BatchLoss.EXAMPLE_MEAN, tmp_path / "a", 1)
    large = gradient(tiny, tokenized[:1], torch.tensor([2.0]), BatchLoss.EXAMPLE_MEAN, tmp_path / "b", 1)
    assert torch.allclose(large, 20 * small, rtol=1e-4)


def test_a_zero_weight_removes_an_example(tiny, tokenized, tmp_path):
    weights = torch.ones(len(tokenized))
    weights[::2] = 0
    weighted = gradient(tiny, tokenized, weights, BatchLoss.EXAMPLE_MEAN, tmp_path / "a", 32)
    rest = tokenized[1::2]
    without = gradient(tiny, rest, torch.ones(len(rest)), BatchLoss.EXAMPLE_MEAN, tmp_path / "b", 32)
    assert torch.allclose(weighted * len(tokenized), without * len(rest), atol=1e-5)


def test_a_single_step_trains(tiny, tokenized, tmp_path):
    """A warm-up share of the steps that rounds to none leaves none, not one step at rate 0."""
    config = replace(CONFIG, epochs=1, batch_size=32, micro_batch_size=32, warmup_ratio=0.03)
    start = tiny.load_trainable(0).model.named_parameters()
    before = {name: p.detach().clone() for name, p in start if p.requires_grad}
    assert distance(before, tune(tiny, tokenized, tmp_path, config)) > 1e-4
    rates = [json.loads(x)["learning_rate"] for x in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rates == [pytest.approx(CONFIG.learning_rate)]


@pytest.mark.parametrize("loss", list(BatchLoss))
def test_only_completion_tokens_carry_loss(tiny, tokenized, tmp_path, loss):
    """The first step's logged loss is the mean over rows, or over tokens, of the labels' losses."""
    config = replace(CONFIG, epochs=1, batch_size=32, micro_batch_size=32, loss=loss)
    tune(tiny, tokenized, tmp_path, config)
    logged = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])["loss"]
    model, rows = tiny.load_trainable(0).model, []
    for row in tokenized:
        log_p = model(torch.tensor([row.input_ids])).logits[0].detach().log_softmax(-1)
        labelled = [t for t in range(1, len(row.input_ids)) if row.labels[t] != IGNORE]
        rows.append([-float(log_p[t - 1, row.labels[t]]) for t in labelled])
    if loss is BatchLoss.TOKEN_MEAN:
        expected = mean([nll for row in rows for nll in row])
    else:
        expected = mean([mean(row) for row in rows])
    assert logged == pytest.approx(expected, abs=1e-4)


def interrupt(tiny, tokenized, directory, monkeypatch, config, step, **kwargs):
    """A fine-tune that is stopped before the end of this step."""
    from gtp_exp.training import trainer

    original = trainer.Progress.on_step_end

    def killed(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Progress, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(tiny, tokenized, directory, config, **kwargs)
    return directory / "trainer"


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny, tokenized, tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=3)
    straight = tune(tiny, tokenized, tmp_path / "a", config)
    from gtp_exp.training import trainer

    interrupt(tiny, tokenized, tmp_path / "b", monkeypatch, config, step=5)  # inside the second epoch
    steps = []

    def count(self, args, state, control, **kwargs):
        steps.append(state.global_step)

    monkeypatch.setattr(trainer.Progress, "on_step_end", count)
    told = []
    resumed = tune(tiny, tokenized, tmp_path / "b", config, hooks=Hooks(on_step=told.append))
    assert steps[0] == 4 and steps[-1] == 9  # the first epoch was not repeated
    assert distance(straight, resumed) == 0
    assert [row["step"] for row in told] == list(range(1, 10))  # and is told all the same
    assert [row["loss"] for row in told] == [row["loss"] for row in curve(tmp_path / "a")]


def test_a_half_written_checkpoint_is_not_resumed(tiny, tokenized, tmp_path):
    straight = tune(tiny, tokenized, tmp_path / "a")
    (tmp_path / "b" / "trainer" / "checkpoint-3").mkdir(parents=True)
    for name in ("optimizer.pt", "trainer_state.json"):
        (tmp_path / "b" / "trainer" / "checkpoint-3" / name).write_bytes(b"half")
    assert distance(straight, tune(tiny, tokenized, tmp_path / "b")) == 0


def test_damage_in_any_file_of_a_checkpoint_is_named_and_the_checkpoint_passed_over(
    tiny, tokenized, tmp_path, monkeypatch, caplog
):
    config = replace(CONFIG, epochs=3)
    scratch = interrupt(tiny, tokenized, tmp_path / "b", monkeypatch, config, step=5)
    (checkpoint,) = scratch.glob("checkpoint-*")
    files = [file for file in checkpoint.iterdir() if file.is_file()]
    assert {"optimizer.pt", "trainer_state.json", "adapter_model.safetensors"} <= {f.name for f in files}
    rng = random.Random(0)
    for file in files:
        content = file.read_bytes()
        for way in Way:
            caplog.clear()
            damage(file, way, rng)
            assert resumable(scratch) is None
            stopped_in_writing = file.name == "manifest.json" and way is Way.DELETE
            assert stopped_in_writing or file.name in caplog.text and str(checkpoint) in caplog.text
            file.write_bytes(content)
    assert resumable(scratch) == str(checkpoint)
    damage(checkpoint / "optimizer.pt", Way.FLIP, rng)
    straight = tune(tiny, tokenized, tmp_path / "a", config)
    assert distance(straight, tune(tiny, tokenized, tmp_path / "b", config)) == 0


def test_the_newest_checkpoint_stays_when_the_clock_was_set_back(tiny, tokenized, tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=4)
    scratch = interrupt(tiny, tokenized, tmp_path, monkeypatch, config, step=4)
    tomorrow = time.time() + 86_400
    for path in (*scratch.glob("checkpoint-*"), *scratch.glob("checkpoint-*/*")):
        os.utime(path, (tomorrow, tomorrow))
    interrupt(tiny, tokenized, tmp_path, monkeypatch, config, step=8)
    assert [path.name for path in scratch.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_fine_tune_stopped_before_its_result_was_saved_trains_no_step_again(
    tiny, tokenized, tmp_path, monkeypatch
):
    from gtp_exp.training import trainer

    first = tune(tiny, tokenized, tmp_path)
    history = curve(tmp_path)
    steps = []
    monkeypatch.setattr(trainer.Progress, "on_step_end", lambda *_, **__: steps.append(1))
    assert distance(first, tune(tiny, tokenized, tmp_path)) == 0
    assert steps == [] and curve(tmp_path) == history


def test_the_hook_sees_every_epoch_with_the_mean_rate_of_its_steps(tiny, tokenized, tmp_path):
    seen = []
    tune(
        tiny,
        tokenized,
        tmp_path,
        hooks=Hooks(lambda m, o, step, lr: seen.append((step, lr, type(o).__name__))),
    )
    # linear decay over 6 steps: rates 6/6 ... 1/6 of 1e-2
    assert [s for s, _, _ in seen] == [3, 6]
    assert [r for _, r, _ in seen] == pytest.approx([1e-2 * 5 / 6, 1e-2 * 2 / 6])
    assert all(name.startswith("Adam") for _, _, name in seen)


def test_a_diverging_loss_stops_the_run_with_the_remedy(tiny, tokenized, tmp_path):
    with pytest.raises(UserError, match="learning_rate"):
        tune(tiny, tokenized, tmp_path, replace(CONFIG, learning_rate=1e30, max_grad_norm=1e30, epochs=4))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"micro_batch_size": 3},
        {"batch_size": 0},
        {"warmup_ratio": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_gradient_checkpointing_runs_layers_again_and_changes_no_weight(
    tiny, tokenized, tmp_path, monkeypatch
):
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward, calls = LlamaMLP.forward, []
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: calls.append(torch.is_grad_enabled()) or forward(self, x)
    )
    whole = tune(tiny, tokenized, tmp_path / "a")
    once = sum(calls)
    again = tune(tiny, tokenized, tmp_path / "b", replace(CONFIG, gradient_checkpointing=True))
    assert sum(calls) - once > once > 0
    assert distance(whole, again) < 1e-6


def test_the_optimizer_is_the_one_that_is_asked_for(tiny, tokenized, tmp_path):
    pytest.importorskip("bitsandbytes")
    whole = tune(tiny, tokenized, tmp_path / "a")
    stored = tune(tiny, tokenized, tmp_path / "b", replace(CONFIG, optimizer=Optimizer.ADAMW_8BIT))
    factored = tune(tiny, tokenized, tmp_path / "c", replace(CONFIG, optimizer=Optimizer.ADAFACTOR))
    assert 0 < distance(whole, stored) < distance(whole, factored)


def test_optimizer_and_checkpointing_are_in_the_key_only_where_they_are_set():
    assert not {"optimizer", "gradient_checkpointing"} & set(CONFIG.reads())
    assert replace(CONFIG, gradient_checkpointing=True).reads() == {
        **CONFIG.reads(),
        "gradient_checkpointing": True,
    }
    assert replace(CONFIG, optimizer=Optimizer.ADAFACTOR).reads()["optimizer"] == "adafactor"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_warm_up_could_not_draw_from_is_refused(seed):
    with pytest.raises(UserError, match=f"gradients.seed={seed} must lie between 0 and 4294967295"):
        GradientConfig(seed=seed)


def test_directions_that_read_moments_are_refused_where_the_warm_up_keeps_none():
    warmup = replace(CONFIG, optimizer=Optimizer.ADAFACTOR)
    with pytest.raises(UserError, match=r"warmup.optimizer=adafactor .*directions=\['adam', 'less'\]"):
        GradientConfig(warmup=warmup)
    GradientConfig(warmup=warmup, directions=[Direction.SGD])
