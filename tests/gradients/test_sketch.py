"""Sketches keep inner products without bias and with the variance that theory gives."""

from __future__ import annotations

import math

import pytest
import torch

from gtp_exp.errors import UserError
from gtp_exp.gradients import sketch as sketches
from gtp_exp.gradients.sketch import Sketch, SketchKind, make_projection

# Parameters of very different sizes, one of them larger than the blocks in which dense signs are drawn.
SIZES = {"a.lora_A": 7, "a.lora_B": 300, "b.lora_A": 300, "b.lora_B": 1500}
SKETCHES = [
    Sketch(SketchKind.COUNTSKETCH, 64, 1),
    Sketch(SketchKind.COUNTSKETCH, 128, 4),
    Sketch(SketchKind.COUNTSKETCH, 256, 8),
    Sketch(SketchKind.RADEMACHER, 64, 0),
]
IDS = [f"{s.kind.value}-{s.nonzeros}" for s in SKETCHES]


def vectors(rows: int, seed: int = 0, sizes: dict[str, int] = SIZES) -> dict[str, torch.Tensor]:
    """Correlated rows with a few large coordinates, as gradients have."""
    generator = torch.Generator().manual_seed(seed)
    shared = {name: torch.randn(1, n, generator=generator) for name, n in sizes.items()}
    scale = {name: torch.rand(n, generator=generator) ** 4 for name, n in sizes.items()}
    return {
        name: (shared[name] + torch.randn(rows, n, generator=generator)) * scale[name]
        for name, n in sizes.items()
    }


def sketched(sketch, parts, *, seed=0, checkpoint=0, sizes=SIZES):
    projection = make_projection(sketch, sizes, seed=seed, checkpoint=checkpoint, device="cpu")
    into = projection.empty(len(next(iter(parts.values()))))
    for name, part in parts.items():
        projection.add(name, part, into)
    return projection.finish(into)


@pytest.mark.parametrize("sketch", SKETCHES, ids=IDS)
def test_inner_products_are_unbiased_with_the_variance_of_theory(sketch):
    parts = vectors(2)
    x, y = torch.cat(list(parts.values()), dim=1).double()
    inner = float(x @ y)
    variance = float((x @ x) * (y @ y) + inner**2 - _never_shared(sketch, parts)) / sketch.dim
    repeats = 400 if sketch.kind is SketchKind.COUNTSKETCH else 200
    found = torch.tensor(
        [_inner(sketched(sketch, parts, seed=s)) for s in range(repeats)], dtype=torch.float64
    )
    # Five standard errors: fails once in a million draws, but the draws are fixed.
    assert abs(float(found.mean()) - inner) <= 5 * math.sqrt(variance / repeats)
    assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / repeats))


def _never_shared(sketch, parts) -> torch.Tensor:
    """What the variance lacks because coordinates of one block never meet; a dense map has blocks of one."""
    width = sketch.dim // sketch.nonzeros if sketch.nonzeros else 1
    blocks = [block.double() for part in parts.values() for block in part.split(width, dim=1)]
    return sum((x @ x) * (y @ y) + (x @ y) ** 2 for x, y in blocks)


def _inner(rows):
    return float(rows[0].double() @ rows[1].double())


@pytest.mark.parametrize("sketch", SKETCHES, ids=IDS)
def test_another_checkpoint_or_seed_is_an_independent_sketch(sketch):
    parts = vectors(1)
    norm = float(torch.cat(list(parts.values()), dim=1).square().sum())
    first = sketched(sketch, parts)
    for other in (dict(checkpoint=1), dict(seed=1)):
        # <S x, S' x> has mean zero and standard deviation |x|^2 / sqrt(dim). With one sketch it is |x|^2.
        products = [
            float((first * sketched(sketch, parts, **{k: v + n for k, v in other.items()})).sum())
            for n in range(20)
        ]
        assert abs(sum(products) / 20) <= 5 * norm / math.sqrt(sketch.dim * 20)
    assert torch.equal(first, sketched(sketch, parts))


@pytest.mark.parametrize("sketch", SKETCHES, ids=IDS)
def test_batch_size_and_order_of_parameters_do_not_enter(sketch):
    parts = vectors(5)
    whole = sketched(sketch, parts)
    backwards = sketched(sketch, dict(reversed(parts.items())))
    rows = torch.cat([sketched(sketch, {n: p[i : i + 1] for n, p in parts.items()}) for i in range(5)])
    torch.testing.assert_close(backwards, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sketch", SKETCHES, ids=IDS)
def test_the_map_has_the_promised_entries_and_differs_between_parameters(sketch):
    """Its columns are the images of unit vectors. Two parameters of equal shape must not share theirs: one
    hash for all layers is a known way to spoil a sketch."""
    columns = {}
    for name in ("a.lora_B", "b.lora_A"):
        unit = {n: torch.zeros(300, size) for n, size in SIZES.items()}
        unit[name] = torch.eye(300)
        columns[name] = sketched(sketch, unit)
    nonzeros = sketch.nonzeros or sketch.dim
    for image in columns.values():
        assert ((image != 0).sum(dim=1) == nonzeros).all()
        torch.testing.assert_close(image[image != 0].abs(), torch.full((300 * nonzeros,), nonzeros**-0.5))
        # Signs and places are balanced: no output coordinate is left out or favoured.
        assert abs(float(image.sign().sum())) <= 5 * math.sqrt(300 * nonzeros)
    buckets = [image != 0 for image in columns.values()]
    same = (buckets[0] == buckets[1]).all(dim=1).float().mean()
    assert float(same) < 0.3 or sketch.kind is SketchKind.RADEMACHER  # 1 if they shared a hash
    assert not torch.equal(*columns.values())


@pytest.mark.parametrize("p", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("add", [sketches._add_blocks, sketches._add_one_by_one, sketches._add_at_once])
def test_however_values_are_added_it_is_the_map_of_the_definition(add, p):
    """The first two are for processors, of large and of small blocks, the third for GPUs."""
    generator = torch.Generator().manual_seed(p)
    values = torch.randn(3, p, generator=generator)
    signs = torch.randint(0, 2, (p,), generator=generator) * 2.0 - 1
    shifts = torch.randint(0, 64, (-(-p // 64),), generator=generator).tolist()
    wanted = torch.zeros(3, 64)
    for j in range(p):
        wanted[:, (j + shifts[j // 64]) % 64] += signs[j] * values[:, j]
    into = torch.zeros(3, 128)
    add(values, signs, shifts, into)
    torch.testing.assert_close(into[:, :64] + into[:, 64:], wanted)


def test_small_blocks_are_not_added_each_by_itself_and_the_sums_are_the_same(monkeypatch):
    """A million values in parts of 64 buckets would be steps by the ten thousand."""
    sketch, parts = Sketch(SketchKind.COUNTSKETCH, 512, 8), vectors(2)
    with monkeypatch.context() as patched:
        patched.setattr(sketches, "_add_blocks", None)
        found = sketched(sketch, parts)
    monkeypatch.setattr(sketches, "FEW", 0)
    assert torch.equal(found, sketched(sketch, parts))


def test_coordinates_of_one_block_share_no_bucket():
    """Of two blocks they do as often as if each coordinate were hashed by itself."""
    sketch, sizes = Sketch(SketchKind.COUNTSKETCH, 64, 1), {"w": 128}
    shared = 0
    for seed in range(640):
        image = sketched(sketch, {"w": torch.eye(128)}, seed=seed, sizes=sizes)
        bucket = image.abs().argmax(dim=1)
        assert len(set(bucket[:64].tolist())) == 64
        shared += int(bucket[0] == bucket[64 + seed % 64])
    assert abs(shared - 10) <= 16  # five standard deviations of 640 draws of 1 in 64


def test_no_sketch_keeps_the_gradient_in_parameter_order():
    parts = vectors(3)
    found = sketched(Sketch(SketchKind.NONE, 0, 0), dict(reversed(parts.items())))
    assert torch.equal(found, torch.cat(list(parts.values()), dim=1))


@pytest.mark.parametrize(
    ("dim", "nonzeros", "word"),
    [(0, 1, "dim=0"), (64, 0, "nonzeros=0"), (64, 9, "nonzeros=9"), (64, 3, "divide")],
)
def test_an_impossible_sketch_is_refused(dim, nonzeros, word):
    with pytest.raises(UserError, match=word):
        Sketch(SketchKind.COUNTSKETCH, dim, nonzeros)
