"""Per-example gradients of a trajectory: from a model, examples and checkpoints to a GradientStore."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.data.hashing import digest
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
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.adapters import check_differentiable, sizes
from gtp_exp.gradients.engines.base import GradientEngine
from gtp_exp.gradients.engines.choose import Engine, choose_engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.memory import halving
from gtp_exp.gradients.meter import Meter
from gtp_exp.gradients.sketch import Sketch, make_projection, output_dim
from gtp_exp.gradients.store import GradientStore, StorageType, StoreWriter
from gtp_exp.model.loss import Reduction

VERSION = 2  # raised when the same settings give other numbers


def collect(
    model: torch.nn.Module,
    examples: Sequence[TokenizedExample],
    checkpoints: Sequence[Checkpoint],
    directory: Path,
    *,
    directions: Sequence[Direction],
    sketch: Sketch,
    seed: int,
    reduction: Reduction,
    storage: StorageType,
    engine: Engine,
    shard_rows: int,
    token_budget: int | None,
    progress: str,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> GradientStore:
    """Store x[t, i] = S_t Gamma_t(g[t, i]) for every checkpoint t and example i.

    g[t, i] is the gradient of example i's completion loss with respect to the model's trainable parameters at
    checkpoint t. All `directions` come from one backward pass. The model is a transformers causal LM with
    LoRA, or with requires_grad set on the parameters to be tuned; it is left as it was found.

    A directory that holds part of the same store is completed, shard by shard, to the same bytes; several
    processes may work on one directory. `token_budget` is the number of tokens in a batch, None to choose it
    from free memory, once for the store; another one given to a resumed run holds for the rest of it and
    moves rounding only. `progress` labels the progress bar; an empty label shows none. betas and eps are
    those of the Adam that made the checkpoints.

    A row whose gradient is not finite is quarantined in the store (zeros, and listed). Raises UserError for
    examples without completion tokens, and for a model the engine cannot differentiate exactly."""
    _check_arguments(examples, checkpoints, directions, shard_rows, token_budget)
    parameters = check_differentiable(model)
    settings = {
        "version": VERSION,
        "libraries": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": importlib.metadata.version("peft"),
        },
        "model_sha256": digest(str(model.config), {name: list(p.shape) for name, p in parameters.items()}),
        "precision": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "n_parameters": sum(p.numel() for p in parameters.values()),
        "checkpoints": [_about(checkpoint) for checkpoint in checkpoints],
        "rows": len(examples),
        "rows_sha256": digest(*([e.id, e.input_ids, e.labels] for e in examples)),
        "directions": [direction.value for direction in directions],
        "adam": {"betas": betas, "eps": eps},
        "sketch": {"kind": sketch.kind.value, "dim": sketch.dim, "nonzeros": sketch.nonzeros},
        "dim": output_dim(sketch, sizes(parameters)),
        "seed": seed,
        "reduction": reduction.value,
        "storage": storage.value,
        "shard_rows": shard_rows,
        "requested": {"engine": engine.value},
    }
    rows = {"ids": [e.id for e in examples], "n_completion_tokens": [e.n_completion_tokens for e in examples]}

    def resolve() -> dict[str, Any]:
        load_trainable(model, checkpoints[0])
        choice = choose_engine(
            model,
            parameters,
            examples[:shard_rows],
            requested=engine,
            reduction=reduction,
            token_budget=token_budget,
        )
        return {
            "engine": choice.engine.value,
            "kernel": choice.kernel.value,
            "token_budget": choice.token_budget,
        }

    with left_as_found(model, parameters):
        writer = StoreWriter(directory, settings, rows, resolve)
        worker = make_engine(
            Engine(writer.plan["engine"]),
            model,
            parameters,
            reduction=reduction,
            kernel=LinearKernel(writer.plan["kernel"]),
        )
        budget = token_budget or writer.plan["token_budget"]
        pending = writer.missing()
        n_tokens = sum(examples[i].n_tokens for _, shard in pending for i in writer.span(shard))
        with Meter(progress, n_tokens) as meter:
            # First whatever no other process is busy with; then wait for the others, and take over if they
            # died.
            for wait in (False, True):
                left = []
                for t, shards in groupby(pending, key=lambda pair: pair[0]):
                    load_trainable(model, checkpoints[t])
                    transform = Transform(
                        directions=directions,
                        projection=make_projection(
                            sketch, sizes(parameters), seed=seed, checkpoint=t, device=_device(parameters)
                        ),
                        moments=_moments(checkpoints[t], parameters, directions),
                        step=checkpoints[t].step,
                        betas=betas,
                        eps=eps,
                        shapes={name: p.shape for name, p in parameters.items()},
                    )
                    for _, shard in shards:
                        with writer.claim(t, shard, wait=wait) as mine:
                            if not mine:
                                left.append((t, shard))
                            elif not writer.intact(t, shard):
                                part = [examples[i] for i in writer.span(shard)]
                                writer.write(
                                    t, shard, *shard_features(worker, transform, part, budget, meter.done)
                                )
                pending = left
    return writer.finish()


def shard_features(
    engine: GradientEngine,
    transform: Transform,
    examples: Sequence[TokenizedExample],
    token_budget: int,
    done: Callable[[Sequence[TokenizedExample]], None],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(features [rows, dim], norms [rows]) by direction, float32, rows in the order of `examples`;
    zeros where the norm is not finite.

    Batches never cross a shard, so that a shard's bytes depend on its own rows only.
    """
    n, dim = len(examples), transform.projection.dim
    features = {d.value: torch.empty(n, dim) for d in transform.directions}
    norms = {d.value: torch.empty(n) for d in transform.directions}

    def run(batch: Sequence[TokenizedExample]) -> Accumulator:
        accumulator = Accumulator(transform, len(batch))
        engine.run(batch, accumulator.add)
        return accumulator

    for index in engine.batches([e.n_tokens for e in examples], token_budget):
        batch = [examples[i] for i in index]
        results = [accumulator.finish() for accumulator in halving(batch, run)]
        for direction in features:
            features[direction][index] = torch.cat([f[direction] for f, _ in results]).cpu()
            norms[direction][index] = torch.cat([n[direction] for _, n in results]).cpu()
        done(batch)
    for direction in features:
        features[direction][~torch.isfinite(norms[direction])] = 0
    return features, norms


@contextlib.contextmanager
def left_as_found(model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Evaluation mode and gradients enabled inside; mode and trainable parameters restored on the way out."""
    modes = {module: module.training for module in model.modules()}
    values = {name: p.detach().clone() for name, p in parameters.items()}
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])


def _check_arguments(
    examples: Sequence[TokenizedExample],
    checkpoints: Sequence[Checkpoint],
    directions: Sequence[Direction],
    shard_rows: int,
    token_budget: int | None,
) -> None:
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
    if not directions or len(set(directions)) != len(directions):
        raise UserError(
            f"directions={[d.value for d in directions]} must name each of sgd, adam, less at most once"
        )
    if shard_rows < 1:
        raise UserError(f"shard_rows={shard_rows} must be at least 1; 1024 is usual")
    if token_budget is not None and token_budget < 1:
        raise UserError(
            f"token_budget={token_budget} must be positive, or null to choose it from free memory"
        )


def _moments(
    checkpoint: Checkpoint, parameters: Mapping[str, torch.nn.Parameter], directions: Sequence[Direction]
) -> Mapping[str, Moments]:
    if set(directions) == {Direction.SGD}:
        return {}
    moments = load_moments(checkpoint, list(parameters), _device(parameters))
    check_moments(moments, parameters, checkpoint)
    return moments


def _device(parameters: Mapping[str, torch.nn.Parameter]) -> torch.device:
    return next(iter(parameters.values())).device


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "step": checkpoint.step,
        "learning_rate": checkpoint.learning_rate,
        "trainable_sha256": sha256_file(checkpoint.directory / TRAINABLE),
        "moments_sha256": sha256_file(checkpoint.directory / MOMENTS),
    }
