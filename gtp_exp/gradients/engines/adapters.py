"""Find a model's LoRA layers, and what of the model the batched engines cannot differentiate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gtp_exp.errors import UserError
from gtp_exp.model.parameters import trainable_parameters

if TYPE_CHECKING:  # it takes seconds to import, and a job that finds its gradients in the cache does without
    from peft.tuners import lora


@dataclass(frozen=True)
class LoraLinear:
    """Holds one adapted linear layer, y = W x + scaling B A x. A matrix that is frozen has no name here.

    With DoRA (Liu et al., arXiv 2402.09353) y = m / |W + scaling B A| (W x + scaling B A x), the norm being
    that of each output's weights and, as PEFT has it, a constant to the gradient.
    """

    name: str
    module: lora.Linear  # or PEFT's class of the same form around a quantised layer
    base: Any  # nn.Linear, or whatever PEFT treats alike
    a: torch.nn.Linear
    b: torch.nn.Linear
    scaling: float
    a_name: str | None
    b_name: str | None
    magnitude: torch.nn.Parameter | None = None  # DoRA's m, [out]
    magnitude_name: str | None = None


@dataclass(frozen=True)
class Adapters:
    """Holds the LoRA layers of a model, and what stands in the way of the batched engines."""

    layers: tuple[LoraLinear, ...]
    obstacles: tuple[str, ...]  # why the batched engines cannot be used, one sentence each, by module name


def has_adapters(model: torch.nn.Module) -> bool:
    """Say whether PEFT has adapted any module of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def find_adapters(model: torch.nn.Module) -> Adapters:
    """Find all LoRA layers, and everything about the model that is not LoRA or DoRA on linear layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    trainable = trainable_parameters(model)
    names = {id(p): name for name, p in trainable.items()}
    layers, obstacles, explained = [], [], set()
    adapted: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        # A module explained once explains its parameters too: one sentence per cause.
        obstacle = _lora_obstacle(module)
        if obstacle:
            obstacles.append(f"{name}: {obstacle}")
            explained.update(id(p) for p in module.parameters())
            continue
        adapter = module.active_adapters[0]
        a, b = module.lora_A[adapter], module.lora_B[adapter]
        dora = module.lora_magnitude_vector[adapter] if adapter in module.lora_variant else None
        layers.append(
            LoraLinear(
                name=name,
                module=module,
                base=module.get_base_layer(),
                a=a,
                b=b,
                scaling=module.scaling[adapter],
                a_name=names.get(id(a.weight)),
                b_name=names.get(id(b.weight)),
                magnitude=None if dora is None else dora.weight,
                magnitude_name=None if dora is None else names.get(id(dora.weight)),
            )
        )
    uses = [id(w) for layer in layers for w in (layer.a.weight, layer.b.weight, layer.magnitude)]
    for name, parameter in trainable.items():
        if (count := uses.count(id(parameter))) > 1:
            obstacles.append(f"{name}: shared by {count} LoRA layers")
        if not count and id(parameter) not in explained:
            obstacles.append(f"{name}: trainable, but not a LoRA matrix of a linear layer")
    return Adapters(layers=tuple(layers), obstacles=tuple(obstacles))


# PEFT's classes of LoRA on a linear layer: a plain one, and those of bitsandbytes.
_LINEAR = ("lora.layer.Linear", "lora.bnb.Linear4bit", "lora.bnb.Linear8bitLt")


def _lora_obstacle(module: Any) -> str | None:
    kind = type(module).__module__.removeprefix("peft.tuners.") + "." + type(module).__name__
    if kind not in _LINEAR:
        return f"adapter layer {kind} is not LoRA on a plain linear layer"
    active = module.active_adapters
    if len(active) != 1:
        return f"{len(active)} active adapters {active}, where one is expected"
    adapter = active[0]
    if adapter not in module.lora_A:
        return f"the active adapter {adapter} has no LoRA matrices here"
    if module.disable_adapters:
        return "the adapter is disabled"
    if module.merged:
        return "the adapter is merged into the base weight"
    variant = type(module.lora_variant.get(adapter)).__name__
    if adapter in module.lora_variant and variant != "DoraLinearVariant":
        return f"LoRA variant {variant}"
    if module.lora_bias.get(adapter):
        return "lora_bias adds a bias to the LoRA matrices"
    if (
        type(module.lora_A[adapter]) is not torch.nn.Linear
        or type(module.lora_B[adapter]) is not torch.nn.Linear
    ):
        return "the LoRA matrices are not plain linear layers"
    return None


def check_differentiable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters. Raise UserError for a model without any, and for learned prompts."""
    adapters: Any = getattr(model, "peft_config", {})
    for name, config in adapters.items():
        if config.is_prompt_learning:
            raise UserError(
                f"adapter {name} is {config.peft_type}: learned prompts change the input, and are not "
                "supported; use LoRA or full fine-tuning"
            )
    parameters = trainable_parameters(model)
    if not parameters:
        raise UserError("the model has no trainable parameter; attach LoRA or set requires_grad")
    return parameters


def refuse(adapters: Adapters, engine: str) -> UserError:
    """Return the error that names the obstacles to an engine, and the way round them."""
    shown = "; ".join(adapters.obstacles[:3])
    more = len(adapters.obstacles) - 3
    return UserError(
        f"engine={engine} computes LoRA on linear layers only, and found {shown}"
        + (f" and {more} more" if more > 0 else "")
        + ". Use LoRA or DoRA (model.lora.target_modules), or gradients.engine=autograd, which is exact for "
        "any parameter, one example at a time"
    )


def sizes(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, int]:
    """Return the number of values of each parameter."""
    return {name: p.numel() for name, p in parameters.items()}
