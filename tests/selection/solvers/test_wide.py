"""The m x m system gives the solution of the p x p one, for one passive set after another."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.selection.solvers.wide import WideSystem

N, M = 240, 40


def problem(ridge):
    generator = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize(torch.randn(N, M, generator=generator, dtype=torch.float64), dim=1)
    rho = ridge * (0.5 + torch.rand(N, generator=generator, dtype=torch.float64))
    return unit, rho, torch.randn(N, generator=generator, dtype=torch.float64)


def directly(unit, rho, correlation, passive):
    gram = unit[passive] @ unit[passive].T + torch.diag(rho[passive])
    return torch.linalg.solve(gram, correlation[passive])


# All of them, a few less, a few others in their place, and a set that shares little with the one before.
SETS = {
    "the same again": [torch.arange(N), torch.arange(N)],
    "a few leave": [torch.arange(N), torch.arange(5, N), torch.arange(5, N - 7)],
    "a few are exchanged": [torch.arange(200), torch.cat([torch.arange(9, 200), torch.arange(210, 220)])],
    "other columns": [torch.arange(100), torch.arange(120, N)],
    "in another order": [torch.arange(N), torch.arange(N - 3).flip(0)],
}


@pytest.mark.parametrize("ridge", [10.0, 0.3, 1e-4, 1e-6])
@pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
def test_solutions_are_those_of_the_normal_equations(sets, ridge):
    unit, rho, correlation = problem(ridge)
    system = WideSystem(unit, rho)
    for passive in sets:
        u = system.solve(passive, correlation[passive])
        left = correlation[passive] - unit[passive] @ (unit[passive].T @ u) - rho[passive] * u
        assert float(left.norm()) <= 1e-6 * float(correlation[passive].norm())
        torch.testing.assert_close(u, directly(unit, rho, correlation, passive), rtol=1e-5, atol=1e-7 / ridge)


def test_few_changed_columns_give_the_matrix_that_is_made_anew():
    unit, rho, _ = problem(0.1)
    system = WideSystem(unit, rho)
    system.inner(torch.arange(N))
    passive = torch.cat([torch.arange(10, 100), torch.arange(105, N)])
    moved = system.inner(passive)
    torch.testing.assert_close(moved, WideSystem(unit, rho).inner(passive), rtol=1e-4, atol=1e-4)
    expected = torch.eye(M, dtype=torch.float64) + unit[passive].T @ (unit[passive] / rho[passive, None])
    torch.testing.assert_close(moved.double(), expected, rtol=1e-4, atol=1e-4)
