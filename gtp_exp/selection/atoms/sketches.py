"""Make the atoms and the target rows of a pursuit from stored sketches.

    a_i = concat_t sqrt(eta_t / sum eta) W_t P_t x[t, i]   (options: see Normalise, CheckpointWeights, Metric)

One pass over the pool's sketches measures the norms and hashes the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from gtp_exp.distributed import Processes
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.features import GradientFeatures, Rows, TensorRows
from gtp_exp.selection.atoms.duplicates import Copies, exact_copies, no_copies, row_hash
from gtp_exp.selection.atoms.matrix import BLOCK, Block, BlockAtoms
from gtp_exp.selection.atoms.metric import MetricSettings, Whitening
from gtp_exp.selection.atoms.rounded import RoundedRows
from gtp_exp.selection.atoms.sharded import SharedRows, Slice, in_memory, own_span, share_of
from gtp_exp.selection.atoms.subspace import Subspace, evenly_spaced, principal_rows
from gtp_exp.selection.atoms.threads import in_threads
from gtp_exp.selection.base import SelectionProblem

GIB = 1 << 30


class Normalise(Enum):
    """Say what is scaled to equal norms before rows are compared."""

    NONE = "none"  # dot products: large gradients (often short completions) weigh more
    ATOM = "atom"  # every atom has unit norm
    CHECKPOINT = "checkpoint"  # every checkpoint's part has norm sqrt(eta_t / sum eta), as in LESS


class Kept(Enum):
    """Say what of the pool's sketches is in memory while a pursuit passes over them."""

    WHOLE = "whole"  # as float32, which is quicker to pass over than half-width numbers
    ROUNDED = "rounded"  # to a byte a number: what these propose is read from the store; see rounded.py
    NOTHING = "nothing"  # every pass reads the store


class CheckpointWeights(Enum):
    """Say by what the checkpoints of the warm-up are weighted."""

    LEARNING_RATE = "learning_rate"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class AtomSettings:
    """Say how atoms are made of stored sketches; `GTP` documents each option."""

    direction: str
    target_direction: str
    normalise: Normalise
    collapse_copies: bool
    chunk_rows: int
    memory_gib: float
    checkpoints: Sequence[int] | None = None
    checkpoint_weights: CheckpointWeights = CheckpointWeights.LEARNING_RATE
    subspace: Subspace = Subspace.NONE
    subspace_dim: int = 1  # of no use without a subspace, as are its rows
    subspace_rows: int = 1
    metric: MetricSettings = MetricSettings()


@dataclass(frozen=True)
class PursuitData:
    """Hold the atoms of all candidates, the target rows, and what was measured on the way."""

    atoms: BlockAtoms  # N x m, normalised as asked
    gradient_norms: torch.Tensor  # float64 [N], norm of the atom before normalisation
    atom_norms: torch.Tensor  # float64 [N], after
    copies: Copies
    target_rows: torch.Tensor | None  # float32 [n, m], normalised as the atoms are; None in-domain
    report: dict[str, object]  # JSON values: dimensions, explained energy, what is held in memory

    def training_weights(self, indices: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
        """Return the gradients' weights float32 [M], mean 1, from those of the normalised atoms float64 [M].

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
    """Raise UserError for gradients that lack a direction, naming the remedy."""
    if features is None:
        raise UserError(f"{selector} reads gradients, and the problem holds none")
    for direction in directions:
        if direction not in features.directions:
            raise UserError(
                f"{selector} reads direction '{direction}' but the store holds "
                f"{', '.join(features.directions)}; choose one of these, or "
                "collect again with it in gradients.directions"
            )


def checkpoint_shares(rates: Sequence[float], weights: CheckpointWeights) -> list[float]:
    """Return eta_t / sum eta per checkpoint, or 1/T. Raises UserError for rates that give no weights."""
    if weights is CheckpointWeights.UNIFORM:
        return [1 / len(rates)] * len(rates)
    if min(rates) < 0 or not sum(rates) > 0:
        raise UserError(
            f"the checkpoints' learning rates {list(rates)} cannot weight them; "
            "set selector.checkpoint_weights=uniform"
        )
    return [rate / sum(rates) for rate in rates]


def taken_checkpoints(length: int, checkpoints: Sequence[int] | None) -> list[int]:
    """Return the positions from 0 of the checkpoints asked for, in the order of training.

    Raises UserError for a position that the warm-up does not have.
    """
    if checkpoints is None:
        return list(range(length))
    return sorted({_on_trajectory(t, length, f"checkpoints={list(checkpoints)}: {t}") for t in checkpoints})


def taken_checkpoint(length: int, checkpoint: int) -> int:
    """Return the position from 0 of the one checkpoint asked for; raise UserError as `taken_checkpoints`."""
    return _on_trajectory(checkpoint, length, f"checkpoint={checkpoint}")


def _on_trajectory(checkpoint: int, length: int, given: str) -> int:
    if not -length <= checkpoint < length:
        raise UserError(
            f"selector.{given} is not on the trajectory of {length} checkpoints, which count from 0; "
            "-1 is the last"
        )
    return checkpoint % length


def build_atoms(problem: SelectionProblem, settings: AtomSettings, selector: str) -> PursuitData:
    """Make the atoms of the problem's candidates, and its target rows in the same space.

    selector: its name, for messages. The problem's seed is that of the principal components' randomised
    estimate. Raises UserError for gradients that lack a direction; numbers that are not finite raise
    ValueError: whoever hands in gradients leaves such rows out before.

    What is kept in memory for the passes to come depends on what fits memory_gib; see `Kept`. With several
    processes each reads its own share of the pool, and all of them must call this together.
    """
    pool, target = problem.pool_gradients, None if problem.target is None else problem.target_gradients
    require_directions(pool, [settings.direction], selector)
    assert pool is not None
    if problem.target is not None:
        require_directions(target, [settings.target_direction], f"{selector}'s target side")
    _check(pool, target, settings, len(problem.candidates))
    seed, processes = problem.seed, problem.processes
    taken = taken_checkpoints(len(pool.learning_rates), settings.checkpoints)
    shares = checkpoint_shares([pool.learning_rates[t] for t in taken], settings.checkpoint_weights)
    stored = [_shared(pool.features(t, settings.direction), processes) for t in taken]
    kept = _kept(pool, settings, len(taken), processes)
    hashes = torch.zeros(pool.n, dtype=torch.int64)
    parts = []
    for t, rows in zip(taken, stored, strict=True):
        of_target = None if target is None else target.features(t, settings.target_direction)
        parts.append(_checkpoint_part(rows, of_target, settings, t, seed, kept, hashes, processes))

    scales, gradient_norms, atom_norms = _scales([part.norms for part in parts], shares, settings.normalise)
    if not (gradient_norms > 0).any():
        raise NothingToChoose(
            "every candidate's gradient is zero, so none can be preferred; check how they were computed"
        )
    blocks = tuple(
        Block(part.rows, s, part.basis, part.metric, part.rounded)
        for part, s in zip(parts, scales, strict=True)
    )
    copies = no_copies(pool.n)
    if settings.collapse_copies:
        copies = exact_copies(stored, processes.all_reduce(hashes))
    atoms = BlockAtoms(blocks, settings.chunk_rows, processes)
    return PursuitData(
        atoms=atoms,
        gradient_norms=gradient_norms,
        atom_norms=atom_norms,
        copies=copies,
        target_rows=_target_rows([p.target for p in parts if p.target is not None], shares, settings),
        report={
            "checkpoints": taken,
            "checkpoint_shares": shares,
            "dim": atoms.shape[1],
            "in_memory": kept.value,
            "processes": processes.size,
            "subspace_dims": [block.dim for block in blocks],
            "subspace_explained": [p.explained for p in parts if p.explained is not None],
            "subspace_explained_of_target": [
                p.target_explained for p in parts if p.target_explained is not None
            ],
            "zero_gradients": int((gradient_norms == 0).sum()),
        },
    )


def _check(
    pool: GradientFeatures, target: GradientFeatures | None, settings: AtomSettings, candidates: int
) -> None:
    """Raise for gradients that do not belong together, and for settings that have no use with them."""
    if pool.n != candidates:
        raise ValueError(f"{pool.n} gradient rows for {candidates} candidates")
    if target is None:
        if settings.target_direction != settings.direction:
            raise UserError(
                f"selector.target_direction={settings.target_direction} has no use in-domain: the target is "
                f"the pool's own mean; set it to {settings.direction}, as selector.direction is"
            )
        if settings.subspace is Subspace.SVD:
            raise UserError("selector.subspace=svd is the span of the target rows; in-domain use pca or none")
    elif (target.dim, len(target.learning_rates)) != (pool.dim, len(pool.learning_rates)):
        raise ValueError("pool and target gradients come from different trajectories or sketches")


def _shared(rows: Rows, processes: Processes) -> Rows:
    """Return the pool's rows, of which each of several processes reads its own share."""
    if processes.size == 1:
        return rows
    share = share_of(rows.shape[0], processes.rank, processes.size)
    return SharedRows(Slice(rows, share), share, rows.shape[0], processes)


def _kept(pool: GradientFeatures, settings: AtomSettings, checkpoints: int, processes: Processes) -> Kept:
    """Return what of the largest share of the pool, in its subspaces, fits into memory_gib: the same in every
    process.
    """
    share = max(len(share_of(pool.n, rank, processes.size)) for rank in range(processes.size))
    dim = pool.dim if settings.subspace is Subspace.NONE else min(settings.subspace_dim, pool.dim)
    numbers, room = share * checkpoints * dim, settings.memory_gib * GIB
    if numbers * torch.float32.itemsize <= room:
        return Kept.WHOLE
    return Kept.ROUNDED if numbers * torch.int8.itemsize <= room else Kept.NOTHING


@dataclass(frozen=True)
class _CheckpointPart:
    """Hold what one checkpoint adds to the atoms and to the target rows."""

    rows: Rows  # of the pool, for the passes to come
    basis: torch.Tensor | None  # that those passes project on; None where rows are projected already
    metric: Whitening | None  # that those passes apply after it; None where it is applied already
    rounded: RoundedRows | None  # the own rows, projected
    norms: torch.Tensor  # float64 [N], of the projected rows
    target: torch.Tensor | None  # float32 [n, k], projected target rows
    explained: float | None  # share of the squared norm of the sampled rows that lies in the subspace
    target_explained: float | None  # the same of the target's mean


def _checkpoint_part(
    rows: Rows,
    of_target: Rows | None,
    settings: AtomSettings,
    checkpoint: int,
    seed: int,
    keep: Kept,
    hashes: torch.Tensor,
    processes: Processes,
) -> _CheckpointPart:
    """Return one checkpoint's share of the atoms; the own rows' hashes are added to `hashes` int64 [N]."""
    target = None
    if of_target is not None:
        target = torch.cat([chunk.float() for _, chunk in of_target.chunks(settings.chunk_rows)])
    basis = explained = target_explained = None
    if settings.subspace is not Subspace.NONE:
        sample = target
        if settings.subspace is Subspace.PCA:
            sample = evenly_spaced(rows, settings.subspace_rows)
        assert sample is not None
        components = principal_rows(sample, settings.subspace_dim, seed + checkpoint)
        if not len(components.vectors):
            raise NothingToChoose("the gradients are all zero, so they span no subspace")
        basis, explained = components.vectors, components.explained
        if target is not None:
            total = float(target.mean(0).square().sum())
            inside = float((basis @ target.mean(0)).square().sum())
            target_explained = inside / total if total else 0.0
            target = target @ basis.T
    metric = settings.metric.of(rows, basis, processes)
    if metric is not None and target is not None:
        target = metric.apply(target)
    seen = Block(rows, torch.ones(0), basis, metric)
    if keep is Kept.ROUNDED:
        room = RoundedRows.empty(len(own_span(rows)), seen.dim, seed=checkpoint)
        seen = replace(seen, rounded=room)
    norms, kept = _scan(seen, checkpoint, hashes, keep is Kept.WHOLE, settings.chunk_rows, processes)
    if keep is Kept.WHOLE:
        basis = metric = None
    return _CheckpointPart(kept, basis, metric, seen.rounded, norms, target, explained, target_explained)


def _scan(
    block: Block,
    checkpoint: int,
    hashes: torch.Tensor,
    held: bool,
    chunk_rows: int,
    processes: Processes,
) -> tuple[torch.Tensor, Rows]:
    """Return the norms float64 [N] of the (projected) rows, and the rows that later passes read.

    block: the rows and how they are seen, its scale unread; its rounded rows are filled. Adds the hashes of
    the own rows to `hashes` int64 [N].
    """
    rows, n = block.rows, block.rows.shape[0]
    norms, kept = torch.zeros(n, dtype=torch.float64), []
    as_stored = block.basis is None and block.metric is None
    copy = held and not (as_stored and rows.dtype == torch.float32 and in_memory(rows))
    for start, chunk in rows.chunks(chunk_rows):
        hashes[start : start + len(chunk)] += row_hash(chunk, checkpoint)
        seen = _see(block, chunk, start, norms, copy)
        if seen is not None:
            kept.append(seen)
    norms = processes.all_reduce(norms)
    if not copy:
        return norms, rows
    own = TensorRows(torch.cat(kept) if kept else torch.empty(0, block.dim))
    if not isinstance(rows, SharedRows):
        return norms, own
    return norms, SharedRows(own, rows.span, n, processes)


def _see(
    block: Block, chunk: torch.Tensor, start: int, norms: torch.Tensor, keep: bool
) -> torch.Tensor | None:
    """Write the norms float64 [N] of rows [c, d] from `start` on as the block sees them, and round them where
    it asks for that; with `keep` return the rows so seen, float32 [c, dim].
    """
    kept = torch.empty(len(chunk), block.dim) if keep else None
    first = own_span(block.rows).start

    def share(parts: range) -> None:
        for begin in (i * BLOCK for i in parts):
            seen = block.project(chunk[begin : begin + BLOCK])
            at = range(start + begin, start + begin + len(seen))
            norms[at.start : at.stop] = torch.linalg.vector_norm(seen, dim=1).double()
            if kept is not None:
                kept[begin : begin + len(seen)] = seen
            if block.rounded is not None:
                block.rounded.put(range(at.start - first, at.stop - first), seen)

    in_threads(share, -(-len(chunk) // BLOCK), 1)
    return kept


def _target_rows(
    parts: list[torch.Tensor], shares: list[float], settings: AtomSettings
) -> torch.Tensor | None:
    """Return the target rows float32 [n, m], normalised as the atoms are; None without parts: in-domain."""
    if not parts:
        return None
    norms = [torch.linalg.vector_norm(part.double(), dim=1) for part in parts]
    scales, _, _ = _scales(norms, shares, settings.normalise)
    return torch.cat([part * scale[:, None] for part, scale in zip(parts, scales, strict=True)], 1)


def _scales(
    norms: list[torch.Tensor], shares: list[float], normalise: Normalise
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the rows' scales float32 [n] per checkpoint, and their norms float64 [n] before and after.

    Raises ValueError where a norm is not finite: such a row would get no scale and pass for a zero gradient.
    """
    roots = [share**0.5 for share in shares]
    weighted = torch.stack([root * norm for root, norm in zip(roots, norms, strict=True)])  # [T, n]
    before = torch.linalg.vector_norm(weighted, dim=0)
    if not torch.isfinite(before).all():
        row = int((~torch.isfinite(before)).nonzero()[0])
        raise ValueError(f"gradient row {row} is not finite, or too large for float32; leave it out")
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
    """Return 1 / norm."""
    return torch.where(norm > 0, 1 / norm, 0.0)  # a zero gradient stays a zero atom
