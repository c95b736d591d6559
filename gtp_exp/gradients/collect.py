"""Collect per-example gradients along a trajectory: of a model, at its checkpoints, into a GradientStore."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from pathlib import Path
from typing import Any

import torch
import transformers

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.data.hashing import digest
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.files import sha256_file
from gtp_exp.gradients.accumulate import Accumulator, Transform
from gtp_exp.gradients.checkpoints import (
    MOMENTS,
    TRAINABLE,
    Checkpoint,
    Moments,
    check_moments,
    load_moments,
    load_trainable,
)
from gtp_exp.gradients.directions import BETAS, EPS, Direction
from gtp_exp.gradients.engines.adapters import (
    check_differentiable,
    find_adapters,
    has_adapters,
    sizes,
)
from gtp_exp.gradients.engines.base import GradientEngine
from gtp_exp.gradients.engines.choose import Engine, choose_engine, heed_lengths, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.engines.memory import halving
from gtp_exp.gradients.meter import Meter
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.sketch import make_projection, output_dim
from gtp_exp.gradients.store import GradientStore, StoreWriter
from gtp_exp.model.parameters import left_as_found
from gtp_exp.model.sharding import is_sharded

log = logging.getLogger(__name__)

_SAMPLED = 64  # values of a frozen weight that tell it from another's, at most
VERSION = 3  # raised when the same settings give other numbers


def collect(
    model: torch.nn.Module,
    examples: Sequence[TokenizedExample],
    checkpoints: Sequence[Checkpoint],
    directory: Path,
    settings: GradientConfig,
    *,
    label: str = "",
    proven: Engine | None = None,
    processes: Processes = ALONE,
) -> GradientStore:
    """Store x[t, i] = S_t Gamma_t(g[t, i]) for every checkpoint t and example i, and return the store.

    g[t, i] is the gradient of example i's completion loss with respect to the model's trainable parameters at
    checkpoint t. All of `settings.directions` come from one backward pass; what `settings` says of the
    warm-up is not read. The model is a transformers causal LM with LoRA, or with requires_grad set on the
    parameters to be tuned; it is left as it was found.

    A directory that holds part of the same store is completed, shard by shard, to the same bytes; several
    processes may work on one directory. `settings.token_budget` is the number of tokens in a batch, None to
    choose it from free memory, once for the store; another one given to a resumed run holds for the rest of
    it and moves rounding only. label: of the progress bar; an empty one shows none. proven: the engine
    of a store that this process has just made with the same model and settings, which need not be compared
    with autograd again. processes: those that work on the directory; only where they share the model's
    weights do they have to be named.

    A row whose gradient is not finite is quarantined in the store (zeros, and listed). Raise UserError for
    examples without completion tokens, and for a model the engine cannot differentiate exactly.
    """
    _check_arguments(examples, checkpoints)
    parameters = check_differentiable(model)
    together = processes if is_sharded(model) else ALONE
    job = _CollectionJob(model, parameters, examples, checkpoints, settings, proven, together)
    with left_as_found(model, parameters):
        writer = job.writer(directory)
        engine = job.make_engine(writer.plan)
        job.tell_engine(label or "gradients", Engine(writer.plan["engine"]))
        pending = [(t, shard) for t, shard in together.broadcast(writer.missing())]
        n_tokens = sum(examples[i].n_tokens for _, shard in pending for i in writer.span(shard))
        with Meter(label, n_tokens) as meter:
            # First what no other process is busy with; then wait for the others, and take over if they died.
            for wait in (False, True):
                pending = job.write_shards(pending, writer, engine, meter, wait=wait)
    together.barrier()
    return writer.finish()


@dataclass(frozen=True)
class _CollectionJob:
    """Holds what `collect` was asked for, and takes its steps."""

    model: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    examples: Sequence[TokenizedExample]
    checkpoints: Sequence[Checkpoint]
    settings: GradientConfig
    proven: Engine | None
    together: Processes  # which share the model's weights, so that none of them can pass alone

    def writer(self, directory: Path) -> StoreWriter:
        """Return a writer of the store. Where all have to choose the engine together, they do so first."""
        if self.together.size == 1:
            return StoreWriter(directory, self.plan(), self.rows(), self.choose_engine)
        chosen = self.choose_engine()
        return StoreWriter(directory, self.plan(), self.rows(), lambda: chosen)

    def plan(self) -> dict[str, Any]:
        """Return everything that the stored numbers depend on, but for what `choose_engine` finds."""
        settings, sketch = self.settings, self.settings.sketch
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        return {
            "version": VERSION,
            "libraries": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": importlib.metadata.version("peft"),
            },
            "model_sha256": digest(str(self.model.config), shapes),
            **({} if is_sharded(self.model) else {"frozen": frozen_fingerprint(self.model)}),
            "precision": sorted({str(p.dtype).removeprefix("torch.") for p in self.model.parameters()}),
            "n_parameters": sum(p.numel() for p in self.parameters.values()),
            "checkpoints": [_checkpoint_identity(checkpoint) for checkpoint in self.checkpoints],
            "rows": len(self.examples),
            "rows_sha256": digest(*([e.id, e.input_ids, e.labels] for e in self.examples)),
            "directions": [direction.value for direction in settings.directions],
            "adam": {"betas": BETAS, "eps": EPS},
            "sketch": {"kind": sketch.kind.value, "dim": sketch.dim, "nonzeros": sketch.nonzeros},
            "dim": output_dim(sketch, sizes(self.parameters)),
            "seed": settings.seed,
            "reduction": settings.reduction.value,
            "storage": settings.storage.value,
            "shard_rows": settings.shard_rows,
            "requested": {"engine": settings.engine.value},
        }

    def rows(self) -> dict[str, Any]:
        """Return the ids and token counts, as the store keeps them."""
        return {
            "ids": [e.id for e in self.examples],
            "n_completion_tokens": [e.n_completion_tokens for e in self.examples],
        }

    def choose_engine(self) -> dict[str, Any]:
        """Return the part of the plan that the machine decides, found on the first shard and the lengths of
        all rows."""
        requested = heed_lengths(self.settings.engine, self.model, self.examples)
        if self.proven is None and requested is not Engine.AUTOGRAD:
            log.info("comparing the gradient engine with autograd, row by row, before it is used")
        load_trainable(self.model, self.checkpoints[0])
        choice = choose_engine(
            self.model,
            self.parameters,
            self.examples[: self.settings.shard_rows],
            requested=requested,
            reduction=self.settings.reduction,
            token_budget=self.settings.token_budget,
            proven=self.proven,
            processes=self.together,
        )
        return {
            "engine": choice.engine.value,
            "kernel": choice.kernel.value,
            "token_budget": choice.token_budget,
        }

    def tell_engine(self, label: str, chosen: Engine) -> None:
        """Log which engine computes the gradients, and whether it is a slower one than was asked for."""
        asked = Engine.PACKED if self.settings.engine is Engine.AUTO else self.settings.engine
        slower = chosen is not asked and has_adapters(self.model)
        told = f", slower than {asked.value}, which does not fit this model" if slower else ""
        log.log(logging.WARNING if slower else logging.INFO, "%s: engine %s%s", label, chosen.value, told)

    def make_engine(self, plan: Mapping[str, Any]) -> GradientEngine:
        """Return the engine that the store's plan names."""
        return make_engine(
            Engine(plan["engine"]),
            self.model,
            self.parameters,
            reduction=self.settings.reduction,
            kernel=LinearKernel(plan["kernel"]),
        )

    def write_shards(
        self,
        pending: Sequence[tuple[int, int]],
        writer: StoreWriter,
        engine: GradientEngine,
        meter: Meter,
        *,
        wait: bool,
    ) -> list[tuple[int, int]]:
        """Write the pending (checkpoint, shard), ordered by checkpoint; return those that others hold.

        wait: for shards that another process holds, until it is through with them.
        """
        budget = self.settings.token_budget or writer.plan["token_budget"]
        held = []
        for t, shards in groupby(pending, key=lambda pair: pair[0]):
            load_trainable(self.model, self.checkpoints[t])
            transform = self.transform(t)
            for _, shard in shards:
                if self.together.size > 1:
                    rows = [self.examples[i] for i in writer.span(shard)]
                    made = shard_features(engine, transform, rows, budget, meter.done, self.together)
                    if self.together.main:
                        writer.write(t, shard, *made)
                    continue
                with writer.claim(t, shard, wait=wait) as mine:
                    if not mine:
                        held.append((t, shard))
                    elif not writer.intact(t, shard):
                        rows = [self.examples[i] for i in writer.span(shard)]
                        writer.write(t, shard, *shard_features(engine, transform, rows, budget, meter.done))
        return held

    def transform(self, t: int) -> Transform:
        """Return what happens to a gradient at checkpoint t."""
        settings, checkpoint = self.settings, self.checkpoints[t]
        device = next(iter(self.parameters.values())).device
        moments: Mapping[str, Moments] = {}
        if set(settings.directions) != {Direction.SGD}:
            moments = load_moments(checkpoint, list(self.parameters), device)
            check_moments(moments, self.parameters, checkpoint)
        return Transform(
            directions=settings.directions,
            projection=make_projection(
                settings.sketch, sizes(self.parameters), seed=settings.seed, checkpoint=t, device=device
            ),
            moments=moments,
            step=checkpoint.step,
            betas=BETAS,
            eps=EPS,
            shapes={name: parameter.shape for name, parameter in self.parameters.items()},
        )


def frozen_fingerprint(model: torch.nn.Module) -> str:
    """Return a hash (hex) of what no checkpoint holds and gradients depend on: how much each adapter counts,
    and some values of every frozen weight. Not of weights that processes share, which none of them has whole.
    """
    hasher = hashlib.sha256()
    if has_adapters(model):
        hasher.update(repr([(layer.name, layer.scaling) for layer in find_adapters(model).layers]).encode())
    for name, weight in model.named_parameters():
        if not weight.requires_grad and weight.numel():
            flat = weight.detach().flatten()
            some = flat[:: -(-len(flat) // _SAMPLED)].cpu().contiguous()
            hasher.update(name.encode() + some.view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def shard_features(
    engine: GradientEngine,
    transform: Transform,
    examples: Sequence[TokenizedExample],
    token_budget: int,
    done: Callable[[Sequence[TokenizedExample]], None],
    together: Processes = ALONE,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (features [rows, dim], norms [rows]) by direction, float32, rows in the order of `examples`;
    features are zeros where the norm is not finite.

    done: is told of every batch that is through. together: processes that share the model's weights; each
    takes its part of the batches, and all return the whole. Batches never cross a shard, so that a shard's
    bytes depend on its own rows only.
    """
    n, dim = len(examples), transform.projection.dim
    features = {d.value: torch.zeros(n, dim) for d in transform.directions}
    norms = {d.value: torch.zeros(n) for d in transform.directions}

    def run(batch: Sequence[TokenizedExample]) -> Accumulator:
        accumulator = Accumulator(transform, len(batch))
        engine.run(batch, accumulator.add)
        return accumulator

    batches = engine.batches([e.n_tokens for e in examples], token_budget)
    own = batches[together.rank :: together.size]
    for index in own:
        batch = [examples[i] for i in index]
        parts = halving(batch, run) if together.size == 1 else [run(batch)]
        results = [accumulator.finish() for accumulator in parts]
        for direction in features:
            features[direction][index] = torch.cat([f[direction] for f, _ in results]).cpu()
            norms[direction][index] = torch.cat([n[direction] for _, n in results]).cpu()
        # A matrix product may read what stands behind a row, times zero: values that are not finite spoil it.
        finite = torch.stack([norm[index] for norm in norms.values()]).isfinite().all(dim=0)
        if together.size == 1 and finite.any():
            for i in compress(index, (~finite).tolist()):
                alone, norm = run([examples[i]]).finish()
                for direction in features:
                    features[direction][i], norms[direction][i] = alone[direction][0], norm[direction][0]
        done(batch)
    if len(own) < -(-len(batches) // together.size):  # the others wait for this process's weights once more
        engine.run([min(examples, key=lambda e: e.n_tokens)], lambda name, gradients: None)
    for direction in features:
        features[direction] = together.all_reduce(features[direction])  # zeros where others have their rows
        norms[direction] = together.all_reduce(norms[direction])
        features[direction][~torch.isfinite(norms[direction])] = 0
    return features, norms


def _check_arguments(examples: Sequence[TokenizedExample], checkpoints: Sequence[Checkpoint]) -> None:
    if not examples:
        raise UserError("there is no example to collect a gradient of; check the data set and its filters")
    if empty := [e.id for e in examples if e.n_completion_tokens == 0]:
        raise UserError(
            f"{len(empty)} examples have no completion token, hence no gradient: {', '.join(empty[:5])}"
        )
    if len({e.id for e in examples}) != len(examples):
        raise UserError("example ids are not unique")
    if not checkpoints:
        raise UserError("no checkpoint is given; the trajectory needs at least one")


def _checkpoint_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "step": checkpoint.step,
        "learning_rate": checkpoint.learning_rate,
        "trainable_sha256": sha256_file(checkpoint.directory / TRAINABLE),
        "moments_sha256": sha256_file(checkpoint.directory / MOMENTS),
    }
