"""What every pursuit solver returns, and the decisions they share: which rows to look at, which to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gtp_exp.distributed import Processes
from gtp_exp.selection.atoms.matrix import Atoms

SLACK = 64  # rows fetched beyond those asked for, so that float32 rounding cannot decide who is in


@dataclass(frozen=True)
class Pursuit:
    """min over w >= 0 with few rows of 1/2 ||A^T W - B||^2 + lam/2 ||W||^2, as one solver left it."""

    support: torch.Tensor  # int64 [k], largest contribution first
    weights: torch.Tensor  # float64 [k, S], >= 0, for the atoms as given
    contributions: torch.Tensor  # float64 [k], ||W_i|| ||a_i||
    objective: float
    residual: float  # ||B - A^T W|| / ||B||
    kkt: float  # of the last fit on the support, relative; see nnls.kkt_residual
    iterations: int
    seconds: float
    curve: tuple[float, ...]  # relative residual after each iteration
    near_copies: torch.Tensor  # int64, rows suppressed as near copies of other candidates
    fitted: torch.Tensor  # float64 [m, S], A^T W

    def summary(self) -> dict[str, float | int | list[float]]:
        return {
            "rows": len(self.support),
            "objective": self.objective,
            "residual": self.residual,
            "kkt": self.kkt,
            "iterations": self.iterations,
            "seconds": self.seconds,
            "curve": list(self.curve),
            "near_copies": len(self.near_copies),
        }


def alignment(correlation: torch.Tensor) -> torch.Tensor:
    """One figure per row from its correlations [k, S] with the residual columns: the norm of the positive
    part.

    It is the fall of the objective that a small non-negative step along the row buys, per unit of step.
    """
    if correlation.shape[1] == 1:
        return correlation[:, 0].clamp(min=0)
    return torch.linalg.vector_norm(correlation.clamp(min=0), dim=1)


def top(values: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest positive values, largest first, equal values in order of their indices."""
    k = min(k, int((values > 0).sum()))
    if k == 0:
        return torch.empty(0, dtype=torch.long)
    kth = values.topk(k, sorted=True).values[-1]
    index = (values >= kth).nonzero().flatten()  # ascending, so a stable sort breaks ties by index
    return index[values[index].sort(descending=True, stable=True).indices[:k]]


def _top_of_all(values: torch.Tensor, k: int, processes: Processes) -> torch.Tensor:
    """`top` of the values of all processes, each of which holds those of its own rows and zeros elsewhere.

    Only the best of every process are sent, 2 k numbers each: who is among the best of all is among its own.
    """
    own = top(values, k)
    if processes.size == 1:
        return own
    offers = torch.zeros(processes.size, 2, k, dtype=torch.float64)
    offers[processes.rank, 0, : len(own)] = own.double()
    offers[processes.rank, 1, : len(own)] = values[own].double()
    index, value = processes.all_reduce(offers).transpose(0, 1).reshape(2, -1)
    order = index.argsort(stable=True)  # where values are equal the lower index comes first
    return index[order][top(value[order], k)].long()


def strongest(
    atoms: Atoms, residual: torch.Tensor, available: torch.Tensor, k: int, above: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k available rows that correlate most with the residual [m, S], and more than `above`: index int64
    [<= k] and their atoms. One pass over the pool.

    The float32 pass proposes k and some more, float64 products of those rows decide: chunking, threads and
    the storage's product kernel change the last bits of the pass, but not the answer.
    """
    values = alignment(atoms.correlate_own(residual.float()))
    values = torch.where(available & (values > above), values, 0.0)
    proposed = _top_of_all(values, k + SLACK, atoms.processes).sort().values
    rows = atoms.rows(proposed)
    best = top(alignment(rows.double() @ residual.double()), k)
    return proposed[best], rows[best]
