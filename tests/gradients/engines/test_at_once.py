"""What a GPU does for all examples at once equals what a CPU does one by one."""

from __future__ import annotations

import pytest
import torch
from small_models import FAMILIES, base, make_examples, packed, small, with_lora, worst_error

from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.sketch import Sketch, SketchKind, make_projection
from gtp_exp.model.rectangle import Rectangle

BOUNDS = [(0, 3), (3, 4), (4, 9)]


def test_a_rectangle_holds_each_sequence_and_zeros():
    rectangle = Rectangle(BOUNDS, torch.device("cpu"))
    tokens = torch.arange(1.0, 10).view(9, 1)
    assert rectangle.spread(tokens)[..., 0].tolist() == [[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [5, 6, 7, 8, 9]]
    assert torch.equal(rectangle.gather(rectangle.spread(tokens)), tokens)


def test_a_rectangle_is_differentiable():
    rectangle = Rectangle(BOUNDS, torch.device("cpu"))
    tokens = torch.randn(9, 2, 2, dtype=torch.float64, requires_grad=True)
    full = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rectangle.spread, (tokens,))
    assert torch.autograd.gradcheck(rectangle.gather, (full,))


def at_once(model):
    engine = packed(model)
    engine._at_once = True
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_autograd(family):
    model = small(family, torch.float64)
    # Some models' norms compute in float32, whatever their weights are in.
    assert worst_error(model, at_once(model), make_examples(9)) <= 1e-6


def test_eager_attention_too():
    model = with_lora(base("mistral", attn_implementation="eager")).double()
    assert worst_error(model, at_once(model), make_examples(9)) <= 1e-6


def test_padding_counts_where_all_are_done_at_once():
    lengths, engine = [9, 1, 1, 1, 8], at_once(small())
    batches = engine.batches(lengths, 20)
    assert sorted(i for batch in batches for i in batch) == list(range(5))
    assert all(len(b) * max(lengths[i] for i in b) <= 20 for b in batches)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_on_a_gpu_equal_autograd_there(family):
    model = small(family, torch.float64).cuda()
    assert worst_error(model, at_once(model), make_examples(40), budget=256) <= 1e-6


@gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_on_a_gpu_are_those_of_a_cpu(family):
    examples, model = make_examples(9), small(family)
    expected = dict(gradients_of(packed(model), examples))
    for example, found in gradients_of(at_once(model.cuda()), examples):
        there = {name: g.cpu() for name, g in found.items()}
        assert relative_error(there, expected[example], order=float("inf")) <= 5e-4


SKETCHES = [
    Sketch(SketchKind.COUNTSKETCH, 64, 1),
    Sketch(SketchKind.COUNTSKETCH, 64, 4),
    Sketch(SketchKind.RADEMACHER, 64, 0),
    Sketch(SketchKind.NONE, 0, 0),
]


@gpu
@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda s: f"{s.kind.value}-{s.nonzeros}")
def test_sketches_on_a_gpu_are_those_of_a_cpu(sketch):
    sizes = {"a": 7, "b": 5000}
    parts = {name: torch.randn(6, n, generator=torch.Generator().manual_seed(n)) for name, n in sizes.items()}
    found = {}
    for device in ("cpu", "cuda"):
        projection = make_projection(sketch, sizes, seed=0, checkpoint=0, device=device)
        into = projection.empty(6)
        for name, part in parts.items():
            projection.add(name, part.to(device), into)
        found[device] = projection.finish(into).cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-4)
