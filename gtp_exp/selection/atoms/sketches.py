"""From stored sketches to the atoms and the target rows of a pursuit.

    a_i = concat_t sqrt(eta_t / sum eta) P_t x[t, i]            (options: see Normalise, CheckpointWeights)

One pass over the pool's sketches measures the norms, hashes the rows and refuses what is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import torch

from gtp_exp.data.examples import Example
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.features import GradientFeatures, Rows, TensorRows
from gtp_exp.selection.atoms.duplicates import Copies, exact_copies, no_copies, row_hash
from gtp_exp.selection.atoms.matrix import BLOCK, Block, BlockAtoms
from gtp_exp.selection.atoms.sharded import SharedRows, Slice, in_memory, share_of
from gtp_exp.selection.atoms.subspace import Subspace, evenly_spaced, principal_rows

GIB = 1 << 30


class Normalise(Enum):
    NONE = "none"  # dot products: large gradients (often short completions) weigh more
    ATOM = "atom"  # every atom has unit norm
    CHECKPOINT = "checkpoint"  # every checkpoint's part has norm sqrt(eta_t / sum eta), as in LESS


class CheckpointWeights(Enum):
    LEARNING_RATE = "learning_rate"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class Trajectory:
    atoms: BlockAtoms  # N x m, normalised as asked
    gradient_norms: torch.Tensor  # float64 [N], norm of the atom before normalisation
    atom_norms: torch.Tensor  # float64 [N], after
    copies: Copies
    target_rows: torch.Tensor | None  # float32 [n, m], normalised as the atoms are; None in-domain
    report: dict[str, object]  # JSON values: dimensions, explained energy, what is held in memory

    def training_weights(self, indices: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
        """Weights of the gradients float32 [M], mean 1, from those of the normalised atoms, float64 [M].

        A row without weight in the fit (most fill rows) gets the smallest positive one, so that every row of
        the budget takes part in training.
        """
        norms = self.gradient_norms[indices]
        weights = torch.where(norms > 0, fitted * self.atom_norms[indices] / norms, 0.0)
        if not (weights > 0).any():
            return torch.ones(len(weights))
        weights = weights.clamp(min=weights[weights > 0].min())
        return (weights / weights.mean()).float()


def require_directions(features: GradientFeatures | None, directions: Sequence[str], selector: str) -> None:
    """Refuse a store that lacks a direction, naming the remedy."""
    if features is None:
        raise UserError(f"{selector} needs gradients of the pool; give a gradients config")
    for direction in directions:
        if direction not in features.directions:
            raise UserError(
                f"{selector} reads direction '{direction}' but the store holds "
                f"{', '.join(features.directions)}; add it to gradients.directions"
            )


def checkpoint_shares(rates: Sequence[float], weights: CheckpointWeights) -> list[float]:
    """eta_t / sum eta, or 1/T."""
    if weights is CheckpointWeights.UNIFORM:
        return [1 / len(rates)] * len(rates)
    if min(rates) < 0 or not sum(rates) > 0:
        raise UserError(
            f"the checkpoints' learning rates {list(rates)} cannot weight them; "
            "set selector.checkpoint_weights=uniform"
        )
    return [rate / sum(rates) for rate in rates]


def taken_checkpoints(length: int, checkpoints: Sequence[int] | None) -> list[int]:
    """Positions from 0 of the checkpoints asked for, in the order of training."""
    asked = range(length) if checkpoints is None else checkpoints
    if outside := [t for t in asked if not -length <= t < length]:
        raise UserError(
            f"selector.checkpoints={list(asked)}: {outside[0]} is not on the trajectory of {length} "
            "checkpoints, counted from 0; -1 is the last"
        )
    return sorted({t % length for t in asked})


def trajectory(
    pool: GradientFeatures,
    target: GradientFeatures | None,
    candidates: Sequence[Example],
    target_examples: Sequence[Example] | None,
    *,
    checkpoints: Sequence[int] | None,
    direction: str,
    target_direction: str,
    normalise: Normalise,
    checkpoint_weights: CheckpointWeights,
    subspace: Subspace,
    subspace_dim: int,
    subspace_rows: int,
    collapse_copies: bool,
    chunk_rows: int,
    memory_gib: float,
    seed: int,
    processes: Processes = ALONE,
) -> Trajectory:
    """Atoms of the pool and, with a target, its rows in the same space.

    checkpoints: positions along the trajectory, -1 the last; None takes all. subspace_dim per checkpoint;
    subspace_rows: at most so many pool rows estimate the principal components.
    Sketches that fit memory_gib together as float32 are held in memory, where a pass over half-width numbers
    would be the slower one; others are read from the store at every pass. With several processes each reads
    its own share of the pool, and all of them must call this together.
    """
    if pool.n != len(candidates):
        raise ValueError(f"{pool.n} gradient rows for {len(candidates)} candidates")
    if target is not None and (target.dim, len(target.learning_rates)) != (
        pool.dim,
        len(pool.learning_rates),
    ):
        raise ValueError("pool and target gradients come from different trajectories or sketches")
    if target is None and target_direction != direction:
        raise UserError(
            f"selector.target_direction={target_direction} has no use in-domain: the target is the pool's "
            f"own mean; set it to {direction}, as selector.direction is"
        )
    if subspace is Subspace.SVD and target is None:
        raise UserError("selector.subspace=svd is the span of the target rows; in-domain use pca or none")
    taken = taken_checkpoints(len(pool.learning_rates), checkpoints)
    shares = checkpoint_shares([pool.learning_rates[t] for t in taken], checkpoint_weights)
    n, stored = pool.n, [pool.features(t, direction) for t in taken]
    share = share_of(n, processes.rank, processes.size)
    if processes.size > 1:
        stored = [SharedRows(Slice(rows, share), share, n, processes) for rows in stored]

    blocks, target_parts, norms, explained, target_explained = [], [], [], [], []
    hashes = torch.zeros(n, dtype=torch.int64)
    dims = [min(subspace_dim, pool.dim) if subspace is not Subspace.NONE else pool.dim] * len(shares)
    held = len(share) * sum(dims) * torch.float32.itemsize <= memory_gib * GIB
    for t, rows in zip(taken, stored, strict=True):
        of_target = None
        if target is not None:
            assert target_examples is not None
            of_target = _all(target.features(t, target_direction), chunk_rows)
            if not torch.isfinite(of_target).all():
                _refuse_non_finite(TensorRows(of_target), target_examples, torch.arange(len(of_target)))
        basis = None
        if subspace is not Subspace.NONE:
            sample = evenly_spaced(rows, subspace_rows) if subspace is Subspace.PCA else of_target
            assert sample is not None
            if not torch.isfinite(sample).all():
                _refuse_non_finite(rows, candidates, torch.arange(n))
            found = principal_rows(sample, subspace_dim, seed + t)
            if not len(found.vectors):
                raise NothingToChoose("the gradients are all zero, so they span no subspace")
            basis = found.vectors
            explained.append(found.explained)
            if of_target is not None:
                total = float(of_target.mean(0).square().sum())
                kept = float((basis @ of_target.mean(0)).square().sum())
                target_explained.append(kept / total if total else 0.0)
        norm, kept_rows = _scan(rows, basis, t, hashes, held, candidates, chunk_rows, processes)
        norms.append(norm)
        blocks.append((kept_rows, basis if not held else None))
        if of_target is not None:
            target_parts.append(of_target if basis is None else of_target @ basis.T)

    scales, gradient_norms, atom_norms = _scales(norms, shares, normalise)
    if not (gradient_norms > 0).any():
        raise NothingToChoose(
            "every candidate's gradient is zero, so none can be preferred; check the gradients config"
        )
    atoms = BlockAtoms(
        tuple(Block(rows, s, b) for (rows, b), s in zip(blocks, scales, strict=True)), chunk_rows, processes
    )
    target_rows = None
    if target_parts:
        part_norms = [torch.linalg.vector_norm(part.double(), dim=1) for part in target_parts]
        target_scales, _, _ = _scales(part_norms, shares, normalise)
        target_rows = torch.cat([p * s[:, None] for p, s in zip(target_parts, target_scales, strict=True)], 1)
    return Trajectory(
        atoms=atoms,
        gradient_norms=gradient_norms,
        atom_norms=atom_norms,
        copies=exact_copies(stored, processes.all_reduce(hashes)) if collapse_copies else no_copies(n),
        target_rows=target_rows,
        report={
            "checkpoints": taken,
            "checkpoint_shares": shares,
            "dim": atoms.shape[1],
            "held_in_memory": held,
            "processes": processes.size,
            "subspace_dims": [block.dim for block in atoms.blocks],
            "subspace_explained": explained,
            "subspace_explained_of_target": target_explained,
            "zero_gradients": int((gradient_norms == 0).sum()),
        },
    )


def _scan(
    rows: Rows,
    basis: torch.Tensor | None,
    checkpoint: int,
    hashes: torch.Tensor,
    held: bool,
    candidates: Sequence[Example],
    chunk_rows: int,
    processes: Processes,
) -> tuple[torch.Tensor, Rows]:
    """Norms float64 [N] of the (projected) rows, the hashes of the own ones added in place, and the rows to
    pass over later.
    """
    n = rows.shape[0]
    norms, kept = torch.zeros(n, dtype=torch.float64), []
    copy = held and (basis is not None or rows.dtype != torch.float32 or not in_memory(rows))
    for start, chunk in rows.chunks(chunk_rows):
        hashes[start : start + len(chunk)] += row_hash(chunk, checkpoint)
        for first in range(0, len(chunk), BLOCK):
            part = chunk[first : first + BLOCK]
            wide = part.float() if basis is None else part.float() @ basis.T
            at = start + first
            norms[at : at + len(part)] = torch.linalg.vector_norm(wide, dim=1).double()
            if copy:
                kept.append(wide.clone() if wide.data_ptr() == part.data_ptr() else wide)
    norms = processes.all_reduce(norms)
    if not torch.isfinite(norms).all():
        _refuse_non_finite(rows, candidates, (~torch.isfinite(norms)).nonzero().flatten())
    if not copy:
        return norms, rows
    width = rows.shape[1] if basis is None else len(basis)
    own = TensorRows(torch.cat(kept) if kept else torch.empty(0, width))
    if not isinstance(rows, SharedRows):
        return norms, own
    return norms, SharedRows(own, rows.span, n, processes)


def _refuse_non_finite(rows: Rows, candidates: Sequence[Example], suspects: torch.Tensor) -> NoReturn:
    """Names the first of the suspects, int64 [k], that is not finite."""
    for suspect in suspects.split(BLOCK):
        bad = ~torch.isfinite(rows.rows(suspect)).all(1)
        if bad.any():
            name = candidates[int(suspect[bad][0])].id
            raise UserError(
                f"the gradient of example '{name}' is not finite; remove the row or set model.precision=fp32"
            )
    name = candidates[int(suspects[0])].id
    raise UserError(f"the gradient of example '{name}' is too large for float32; rescale the store")


def _scales(
    norms: list[torch.Tensor], shares: list[float], normalise: Normalise
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Row scales float32 per checkpoint, and float64 norms of the rows before and after normalisation."""
    roots = [share**0.5 for share in shares]
    weighted = torch.stack([root * norm for root, norm in zip(roots, norms, strict=True)])  # [T, n]
    before = torch.linalg.vector_norm(weighted, dim=0)
    if normalise is Normalise.NONE:
        per_checkpoint = [torch.full_like(norm, root) for root, norm in zip(roots, norms, strict=True)]
    elif normalise is Normalise.ATOM:
        per_checkpoint = [root * _inverse(before) for root in roots]
    else:
        per_checkpoint = [root * _inverse(norm) for root, norm in zip(roots, norms, strict=True)]
    after = torch.linalg.vector_norm(
        torch.stack([s * norm for s, norm in zip(per_checkpoint, norms, strict=True)]), dim=0
    )
    return [s.float() for s in per_checkpoint], before, after


def _inverse(norm: torch.Tensor) -> torch.Tensor:
    return torch.where(norm > 0, 1 / norm, 0.0)  # a zero gradient stays a zero atom


def _all(rows: Rows, chunk_rows: int) -> torch.Tensor:
    return torch.cat([chunk.float() for _, chunk in rows.chunks(chunk_rows)])
