"""Memory on long rows: no pass makes a tensor of tokens x tokens or tokens x vocabulary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import base, packed, with_lora
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.evaluation.held_out import HeldOutLoss, held_out_loss
from gtp_exp.gradients.engines import head
from gtp_exp.gradients.engines.base import AutogradEngine, gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.model import labelled, loss, packed_attention
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import trainable_parameters
from gtp_exp.training.batches import Collate, TermsDataset, TrainingRows
from gtp_exp.training.config import BatchLoss
from gtp_exp.training.trainer import WeightedTrainer

TOKENS, WORDS = 1536, 4096
SHAPE = {"vocab_size": WORDS, "max_position_embeddings": TOKENS}


def long_row(n: int = TOKENS) -> TokenizedExample:
    """A row whose second half is labelled."""
    ids = torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    labels = (IGNORE,) * (n // 2) + tuple(ids[n // 2 :])
    return TokenizedExample("long", tuple(ids), labels, ((n // 2, n - 1),))


class Largest(TorchDispatchMode):
    """Notes the most values of any tensor that an operation returns inside."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(part, torch.Tensor):
                self.values = max(self.values, part.numel())
        return out


@pytest.fixture
def small_pieces(monkeypatch):
    """Lets pieces and blocks be small against the row of this file."""
    monkeypatch.setattr(labelled, "_PIECE", 1 << 16)
    monkeypatch.setattr(head, "_CHUNK_VALUES", 1 << 16)
    monkeypatch.setattr(labelled, "_KEPT", 1 << 16)
    monkeypatch.setattr(loss, "_WHOLE_LOGITS", 1 << 16)
    monkeypatch.setattr(packed_attention, "_MASK_VALUES", 1 << 15)


def largest_of(run) -> int:
    with Largest() as largest:
        run()
    return largest.values


# Above a block of queries x keys in all heads and the weights; below the square of the row, and below the
# logits of its labels.
LIMIT = TOKENS * TOKENS // 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama_gqa_tied_bias", "mistral", "gemma2"])
def test_the_packed_pass_is_linear_in_a_row_and_exact(family, attention, small_pieces, monkeypatch):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("it caps the scores of its attention, which torch's fused one cannot")
    window = {} if "llama" in family else {"sliding_window": 200}
    model = with_lora(base(family, attn_implementation=attention, **SHAPE, **window)).double()
    engine, row = packed(model), long_row()
    assert largest_of(lambda: engine.run([row], lambda name, gradients: None)) <= LIMIT
    ((_, found),) = gradients_of(engine, [row])
    monkeypatch.undo()  # the reference in one piece
    whole = reference_gradients(model, trainable_parameters(model), row, Reduction.MEAN)
    assert relative_error(found, whole, order=float("inf")) <= 1e-6


@pytest.mark.parametrize("trained", ["LoRA", "every weight"])
def test_engines_that_do_not_pack_are_linear_too(trained, small_pieces):
    plain = base("llama_gqa_tied_bias", **SHAPE)
    model = with_lora(plain) if trained == "LoRA" else plain.requires_grad_(True)
    parameters, row = trainable_parameters(model), long_row()
    engines = [AutogradEngine(model, parameters, Reduction.MEAN)]
    if trained == "LoRA":
        options = {"reduction": Reduction.MEAN, "kernel": LinearKernel.DEFAULT}
        engines.append(make_engine(Engine.HOOKS, model, parameters, **options))
    for engine in engines:
        assert largest_of(lambda e=engine: e.run([row], lambda name, gradients: None)) <= LIMIT, engine.name


@pytest.mark.parametrize("trained", ["LoRA", "every weight"])
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
def test_a_training_step_is_linear_in_a_row(trained, is_packed, small_pieces, tmp_path):
    plain = base("llama_gqa_tied_bias", **SHAPE)
    model = with_lora(plain) if trained == "LoRA" else plain.requires_grad_(True)
    data = TermsDataset(TrainingRows([long_row()]), BatchLoss.EXAMPLE_MEAN, 0)
    batch = Collate(0, packed=is_packed)([data[0]])
    trainer = WeightedTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert largest_of(lambda: trainer.training_step(model, batch, torch.tensor(1.0))) <= LIMIT
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_held_out_loss_is_linear_in_rows(small_pieces):
    """Two rows of unlike length: in one batch the shorter one's padding would take a mask of every pair."""
    model, tokenizer = base("llama_gqa_tied_bias", **SHAPE), SimpleNamespace(pad_token_id=0)
    rows = [long_row(), replace(long_row(1200), id="shorter")]
    found: list[HeldOutLoss] = []
    loaded = LoadedModel(model, tokenizer, TOKENS, torch.float32)
    largest = largest_of(lambda: found.append(held_out_loss(rows, loaded, batch_size=1, label="test")))
    assert largest <= LIMIT
    nll = F.cross_entropy(
        model(input_ids=torch.tensor([rows[0].input_ids])).logits[0, TOKENS // 2 - 1 : -1],
        torch.tensor(rows[0].labels[TOKENS // 2 :]),
        reduction="sum",
    )
    assert float(found[0].nats[0].sum()) == pytest.approx(float(nll), rel=1e-5)


PASSES = """
import json, sys, torch
from types import SimpleNamespace
from small_models import base, packed, with_lora
from test_long_rows import long_row
from gtp_benchmarks.performance.measuring import peak_memory
from gtp_exp.evaluation.held_out import held_out_loss
from gtp_exp.model.loading import LoadedModel

n = int(sys.argv[1])
shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4096}
model = with_lora(base("llama_gqa_tied_bias", max_position_embeddings=n, **shape))
engine, names = packed(model), []
engine.run([long_row(64)], lambda name, gradients: None)
before = peak_memory()
engine.run([long_row(n)], lambda name, gradients: names.append(name))
loaded = LoadedModel(model, SimpleNamespace(pad_token_id=0), n, torch.float32)
loss = held_out_loss([long_row(n)], loaded, batch_size=8, label="long")
print(json.dumps([peak_memory() - before, len(names), float(loss.nats.sum()) / (n // 2)]))
"""


@pytest.mark.slow
def test_a_row_of_16384_tokens_fits_into_a_quarter_of_a_gibibyte():
    """Its logits alone, in float32, would take that much, and one head's attention four times as much."""
    done = subprocess.run(
        [sys.executable, "-c", PASSES, "16384"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    peak, matrices, nats = json.loads(done.stdout.splitlines()[-1])
    assert peak < 2**28
    assert matrices == 2 * 7  # A and B of seven linear layers
    assert nats > 1
