"""Adam directions equal the steps of torch's Adam, and the published LESS formula."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.gradients.directions import Direction, apply_direction

SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_adam_is_the_step_torch_would_take(steps):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(50, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.01, **SETTINGS)
    for _ in range(steps):
        parameter.grad = torch.randn(50, generator=generator, dtype=torch.float64)
        optimizer.step()
    state = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    candidates = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    found = apply_direction(
        Direction.ADAM, candidates, state["exp_avg"], state["exp_avg_sq"], step=steps, **SETTINGS
    )
    at_checkpoint = parameter.detach().clone()
    for candidate, direction in zip(candidates, found, strict=True):
        with torch.no_grad():
            parameter.copy_(at_checkpoint)
        optimizer.state[parameter].update({name: value.clone() for name, value in state.items()})
        parameter.grad = candidate
        optimizer.step()
        torch.testing.assert_close((at_checkpoint - parameter.detach()) / 0.01, direction)


def test_less_is_the_published_formula():
    g, m, v = torch.tensor([[0.3, -2.0]]), torch.tensor([0.1, 0.5]), torch.tensor([0.04, 0.0])
    expected = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + 1e-8)
    # The same at every step: LESS has no bias correction.
    for step in (1, 1000):
        torch.testing.assert_close(apply_direction(Direction.LESS, g, m, v, step=step, **SETTINGS), expected)


def test_sgd_is_the_gradient_and_nothing_is_modified():
    g, m, v = torch.randn(3, 5), torch.randn(5), torch.rand(5)
    before = g.clone(), m.clone(), v.clone()
    assert torch.equal(apply_direction(Direction.SGD, g, m, v, step=1, **SETTINGS), g)
    for direction in (Direction.ADAM, Direction.LESS):
        apply_direction(direction, g, m, v, step=1, **SETTINGS)
    assert all(torch.equal(now, then) for now, then in zip((g, m, v), before, strict=True))
