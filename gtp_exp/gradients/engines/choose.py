"""Choose the engine: the fastest whose gradients equal those of batch-size-1 autograd on the first batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.gradients.engines.adapters import Adapters, find_adapters, has_adapters, refuse
from gtp_exp.gradients.engines.base import AutogradEngine, GradientEngine
from gtp_exp.gradients.engines.check import check_engine, spread
from gtp_exp.gradients.engines.hooks import HooksEngine, hooks_obstacle
from gtp_exp.gradients.engines.linear import LinearKernel, fastest_kernel
from gtp_exp.gradients.engines.memory import choose_token_budget
from gtp_exp.gradients.engines.packed import PackedEngine, packed_obstacle
from gtp_exp.model.device import out_of_memory
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction
from gtp_exp.model.parameters import half_precision, in_float32
from gtp_exp.model.positions import scaled_beyond
from gtp_exp.model.sharding import is_sharded

_CHECKED = 8  # examples of the first batch that are compared
# Of a model in half precision, a few in float32, which is slow on a machine that computes in less, and again
# a few as they are computed, where only gross errors can show.
_CHECKED_WIDENED, _CHECKED_IN_HALF = 4, 3


class Engine(Enum):
    """Names the engines that can be asked for."""

    AUTO = "auto"  # the fastest one that passes the check
    PACKED = "packed"  # LoRA: sequences end to end, no padding, logits only where there is loss
    COMPILED = "compiled"  # packed with torch.compile for the norms: some percent faster, after 20 s
    HOOKS = "hooks"  # LoRA: padded batches through the model's own forward
    AUTOGRAD = "autograd"  # any parameters, one example at a time: full fine-tuning, and the reference


def make_engine(
    kind: Engine,
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    *,
    reduction: Reduction,
    kernel: LinearKernel,
) -> GradientEngine:
    """Return an engine, unchecked. Raise UserError for modules that it cannot differentiate exactly."""
    if kind is Engine.AUTOGRAD:
        return AutogradEngine(model, parameters, reduction)
    adapters = _lora(model, kind)
    if kind is Engine.HOOKS:
        return HooksEngine(model, adapters, reduction)
    return PackedEngine(model, adapters, reduction, kernel, compiled=kind is Engine.COMPILED)


def check_adapters(model: torch.nn.Module, requested: Engine) -> None:
    """Raise UserError for adapters that no engine may be chosen for, so that it shows before a warm-up."""
    one_by_one = requested is Engine.AUTOGRAD or (requested is Engine.AUTO and not has_adapters(model))
    if not one_by_one:
        _lora(model, Engine.PACKED if requested is Engine.AUTO else requested)


def heed_lengths(requested: Engine, model: torch.nn.Module, examples: Sequence[TokenizedExample]) -> Engine:
    """Return the engine to ask for, with a warning where none but the one that takes the rows one by one is
    exact for their lengths.

    examples: all rows, for the first shard need not hold a long one.
    """
    limit = scaled_beyond(base_model(model).config.get_text_config())
    longest = max(example.n_tokens for example in examples)
    if requested is Engine.AUTOGRAD or limit is None or longest <= limit or not has_adapters(model):
        return requested
    warnings.warn(
        f"rows are taken one by one, which is slower: a row has {longest} tokens, and beyond {limit} the "
        "model's rope_type scales the positions of a whole batch by its longest row",
        stacklevel=2,
    )
    return Engine.AUTOGRAD


@dataclass(frozen=True)
class EngineChoice:
    """Holds what the machine and the model decide, and a resumed run must repeat."""

    engine: Engine
    kernel: LinearKernel
    token_budget: int


def choose_engine(
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    examples: Sequence[TokenizedExample],
    *,
    requested: Engine,
    reduction: Reduction,
    token_budget: int | None,
    proven: Engine | None = None,
    processes: Processes = ALONE,
) -> EngineChoice:
    """Return the fastest allowed engine that passes the check. It falls back from packed to padded, and from
    padded to one by one, with a warning that says why.

    examples: those of the first shard. proven: an engine that has passed on other rows of the same model,
    here and now; neither it nor the faster ones that failed before it are checked again. processes: that
    share the model's weights, and so have to choose together.
    """
    kinds = [Engine.PACKED, Engine.HOOKS, Engine.AUTOGRAD]
    if requested is Engine.AUTOGRAD or (requested is Engine.AUTO and not has_adapters(model)):
        kinds = [Engine.AUTOGRAD]
    elif requested is Engine.HOOKS:
        kinds = [Engine.HOOKS, Engine.AUTOGRAD]
    elif requested is Engine.COMPILED:
        kinds = [Engine.COMPILED, *kinds]
    if proven in kinds:
        kinds = kinds[kinds.index(proven) :]
    longest = max(examples, key=lambda e: e.n_tokens)
    kernel = LinearKernel(processes.broadcast(fastest_kernel(model).value))
    for kind in kinds[:-1]:
        adapters = _lora(model, kind)
        packed = kind in (Engine.PACKED, Engine.COMPILED)
        reason, budget = packed_obstacle(model, adapters) if packed else hooks_obstacle(adapters), 0
        if reason is None:
            try:
                engine = make_engine(kind, model, parameters, reduction=reduction, kernel=kernel)
                budget = token_budget or choose_token_budget(engine, model, longest)
                budget = min(processes.all_gather(budget))
                if kind is not proven:
                    first = engine.batches([e.n_tokens for e in examples], budget)[0]
                    batch = [examples[i] for i in first]
                    reason = _difference(kind, engine, model, parameters, batch, reduction)
            except UserError:
                raise
            # Whatever an unforeseen model does to the engine, the next one may still be exact.
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            reason = next((r for r in processes.all_gather(reason) if r is not None), None)
            if reason is None:
                return EngineChoice(kind, kernel, budget)
        warnings.warn(
            f"engine {kind.value} does not fit this model, a slower one is used: {reason}", stacklevel=3
        )
    return EngineChoice(kinds[-1], kernel, token_budget or longest.n_tokens)


def _difference(
    kind: Engine,
    engine: GradientEngine,
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    batch: Sequence[TokenizedExample],
    reduction: Reduction,
) -> str | None:
    """Return where the engine differs from autograd on some rows of a batch, or None."""
    if half_precision(model) and not is_sharded(model):
        reason = _check_in_float32(kind, model, parameters, batch, reduction)
        return reason or check_engine(engine, model, parameters, batch, reduction, at_most=_CHECKED_IN_HALF)
    return check_engine(engine, model, parameters, batch, reduction, at_most=_CHECKED)


def _check_in_float32(
    kind: Engine,
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    batch: Sequence[TokenizedExample],
    reduction: Reduction,
) -> str | None:
    """Return why the engine must not be used, or None, where rounding cannot hide an error: on the same
    weights, widened for the time being. The rows that are compared are the whole batch here."""
    try:
        with in_float32(model):
            engine = make_engine(kind, model, parameters, reduction=reduction, kernel=LinearKernel.DEFAULT)
            rows = spread(batch, _CHECKED_WIDENED)
            return check_engine(engine, model, parameters, rows, reduction, at_most=len(rows))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    warnings.warn(
        "too little memory to check the engine in float32; its check in half precision is coarse",
        stacklevel=4,
    )
    return None


def _lora(model: torch.nn.Module, kind: Engine) -> Adapters:
    adapters = find_adapters(model)
    if adapters.obstacles:
        raise refuse(adapters, kind.value)
    return adapters
