"""The loss of a batch, `train.loss`: held against a plain loop over rows, one at a time."""

from __future__ import annotations

from dataclasses import replace

import forked
import pytest
import recorded_steps
import torch
import torch.nn.functional as F
from recorded_steps import CASES, CONFIG, step_gradients, unequal_rows

from gtp_exp.training.batches import RowOrder, TrainingRows
from gtp_exp.training.config import BatchLoss, TrainConfig


def row_gradient(model, row):
    """The gradient of the sum of one row's completion-token losses, and the number of these tokens."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    total, count = torch.zeros(()), 0
    for t in range(1, len(row.input_ids)):
        if row.labels[t] != -100:
            total = total - F.log_softmax(logits[t - 1].float(), -1)[row.labels[t]]
            count += 1
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]), count


def expected_steps(model, rows, weights, loss, batch_size):
    """What the loss of each batch says, written out: no padding, no batches, no accumulation."""
    order = list(RowOrder(len(rows), 1, 0))
    steps = []
    for start in range(0, len(order), batch_size):
        numerator, rows_seen, tokens_seen = 0.0, 0, 0
        for i in order[start : start + batch_size]:
            gradient, n = row_gradient(model, rows[i])
            weight = 1.0 if weights is None else float(weights[i])
            numerator = numerator + weight * (gradient / n if loss is BatchLoss.EXAMPLE_MEAN else gradient)
            rows_seen, tokens_seen = rows_seen + 1, tokens_seen + n
        steps.append(numerator / (rows_seen if loss is BatchLoss.EXAMPLE_MEAN else tokens_seen))
    return steps


def assert_same(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert float((left - right).norm() / right.norm()) < 1e-4


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_a_loop_over_rows_whatever_the_passes(tiny, tmp_path, name, micro):
    loss, weights = CASES[name]
    rows = unequal_rows()
    config = replace(CONFIG, loss=loss, micro_batch_size=micro)
    found = step_gradients(tiny, TrainingRows(rows, weights), config, tmp_path)
    assert_same(found, expected_steps(tiny.load_trainable(0).model, rows, weights, loss, 4))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """Return by rank what each of two processes handed to its optimizer, and the model they trained."""
    from gtp_exp.model.device import Precision
    from gtp_exp.model.loading import ModelConfig, ModelSource, prepare
    from gtp_exp.model.lora import LoRA

    folder = tmp_path_factory.mktemp("by_two")
    forked.connected(2, recorded_steps.main, folder)
    lora = LoRA(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"], last_layers=None)
    config = ModelConfig(ModelSource.TINY, "tiny", None, Precision.FP32, 256, False, None, lora)
    prepared = prepare(config, folder / "cache", torch.device("cpu"))
    return [torch.load(folder / f"2-{rank}.pt") for rank in range(2)], prepared.load_trainable(0).model


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_a_loop_over_rows(by_two, name):
    ranks, model = by_two
    loss, weights = CASES[name]
    expected = expected_steps(model, unequal_rows(), weights, loss, 4)
    for found in ranks:
        assert_same(found[name], expected)


def test_by_default_every_row_counts_the_same_whatever_its_length(tiny, tmp_path):
    """One batch of all rows: its gradient is the mean of the rows' gradients that selectors see."""
    rows = unequal_rows()
    config = replace(TrainConfig(), epochs=1, warmup_ratio=0.0, max_grad_norm=1e9)
    (found,) = step_gradients(tiny, TrainingRows(rows), config, tmp_path)
    model = tiny.load_trainable(0).model
    gradients = [g / n for g, n in (row_gradient(model, row) for row in rows)]
    assert_same([found], [torch.stack(gradients).mean(0)])


@pytest.mark.parametrize("loss", list(BatchLoss))
def test_equal_weights_are_the_same_as_none(tiny, tmp_path, loss):
    rows, config = unequal_rows(), replace(CONFIG, loss=loss)
    without = step_gradients(tiny, TrainingRows(rows), config, tmp_path / "a")
    equal = step_gradients(tiny, TrainingRows(rows, torch.ones(len(rows))), config, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(without, equal, strict=True))
