"""Compare an engine with batch-size-1 autograd on real examples, before it is trusted with the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.engines.base import GradientEngine, gradients_of
from gtp_exp.gradients.engines.memory import halving
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import half_precision
from gtp_exp.model.sharding import is_sharded

# Largest relative error by the precision of the model's weights. In float32 batch-size-1 autograd is itself
# about 1e-5 from float64. In half precision both sides carry rounding errors of several percent in the l2
# norm, so there the engine is checked in float32 as well (choose.py).
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 0.2


def check_engine(
    engine: GradientEngine,
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    batch: Sequence[TokenizedExample],
    reduction: Reduction,
    *,
    at_most: int,
) -> str | None:
    """Return why the engine must not be used, or None. Compare `at_most` examples spread over the batch.

    In half precision the best of them counts: a wrong engine errs on every example, rounding on some.
    An example whose own gradient is not finite tells nothing of the engine.
    """
    compared = spread(batch, at_most)
    names = {e.id for e in compared}

    def gradients(part: Sequence[TokenizedExample]) -> list[tuple[TokenizedExample, dict[str, torch.Tensor]]]:
        return [(e, g) for e, g in gradients_of(engine, part) if e.id in names]

    # With shared weights another process would wait for the second half.
    sharded = is_sharded(model)
    parts = [gradients(batch)] if sharded else halving(batch, gradients)
    half = half_precision(model)
    widths = {p.dtype for p in model.parameters()} & _TOLERANCE.keys()
    tolerance = _HALF_TOLERANCE if half else max(_TOLERANCE[dtype] for dtype in widths)
    errors = []
    for example, found in (pair for part in parts for pair in part):
        expected = reference_gradients(model, parameters, example, reduction)
        if not _is_finite(expected):
            continue
        if not sharded and not _is_finite(found):
            ((_, found),) = gradients_of(engine, [example])  # which a row behind it may have spoiled
        error = relative_error(found, expected, order=2 if half else float("inf"))
        errors.append((error if error == error else float("inf"), example.id))  # NaN has no order
    if not errors:
        raise not_finite([e.id for e in compared])
    error, example_id = min(errors) if half else max(errors)
    if not error <= tolerance:
        return (
            f"engine {engine.name} differs from batch-size-1 autograd by {error:.1e} on {example_id} "
            f"({tolerance:.0e} is allowed)"
        )
    return None


def spread(batch: Sequence[TokenizedExample], at_most: int) -> list[TokenizedExample]:
    """Return some examples of a batch, the first and the last and as many between them as are wanted."""
    return [batch[i] for i in torch.linspace(0, len(batch) - 1, min(at_most, len(batch))).long().tolist()]


def _is_finite(gradients: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(g).all()) for g in gradients.values())


def not_finite(ids: Sequence[str]) -> UserError:
    """Return the error for examples none of whose gradients is finite."""
    return UserError(
        f"the gradient of example {', '.join(ids[:5])} is not finite; check its text and the warm-up's "
        "rate, or compute in float32"
    )


def relative_error(
    gradients: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, order: float
) -> float:
    """Return |gradients - expected| / |expected| over all parameters together, in the norm of this order.

    order: 2, or infinity for the largest value. A parameter that is missing from `gradients` has gradient
    zero: its layer took no part.
    """

    def norm(tensors: list[torch.Tensor]) -> float:
        return float(torch.cat([t.flatten() for t in tensors]).norm(order))

    zero = torch.zeros(())
    difference = norm([gradients.get(name, zero).double() - g.double() for name, g in expected.items()])
    scale = norm([g.double() for g in expected.values()])
    return difference / scale if scale else difference
