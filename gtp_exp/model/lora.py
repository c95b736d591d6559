"""Check the settings of a LoRA, find the layers that get one, and put a fresh one on a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Optional

import torch
from transformers.pytorch_utils import Conv1D

from gtp_exp.errors import UserError
from gtp_exp.model.text_part import beside_text

ALL_LINEAR = "all-linear"
_OFF_BY_DEFAULT = ("use_rslora", "use_dora")


@dataclass(frozen=True)
class LoRA:
    """Holds the lora node of a model's config: rank, scale and the layers that are adapted."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    # Names, or `all-linear`: every linear layer but the output head.
    target_modules: str | list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    last_layers: Optional[int] = None  # how many are adapted, from the last layer down; null: all of them
    use_rslora: bool = False  # scales by alpha / sqrt(r) in place of alpha / r (arXiv 2312.03732)
    use_dora: bool = False  # direction and magnitude of each output's weights apart (arXiv 2402.09353)

    # Keys that PEFT has and this class has not, with the reason.
    refused: ClassVar[dict[str, str]] = {
        "modules_to_save": "whole modules beside the LoRA are not trained, for a row's gradient would be as "
        "large as they are; adapt them (model.lora.target_modules), or train every weight (model.lora=null)"
    }

    def __post_init__(self) -> None:
        if self.last_layers is not None and self.last_layers < 1:
            raise UserError(f"model.lora.last_layers={self.last_layers} must be at least 1, or null for all")
        if self.r < 1 or self.alpha < 1 or not self.target_modules or not 0 <= self.dropout < 1:
            raise UserError(
                "model.lora needs r >= 1, alpha >= 1, target_modules and 0 <= dropout < 1; got "
                f"r={self.r}, alpha={self.alpha}, {self.target_modules}, dropout={self.dropout}"
            )
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            raise UserError(
                f"model.lora.target_modules={self.target_modules} must be a list of names, "
                f"[{self.target_modules}], or {ALL_LINEAR}"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings as a cache key holds them: what is off is left out."""
        targets = self.target_modules
        told = {**asdict(self), "target_modules": targets if isinstance(targets, str) else sorted(targets)}
        return {name: value for name, value in told.items() if name not in _OFF_BY_DEFAULT or value}


def layers_to_adapt(lora: LoRA, architecture: Any) -> list[int] | None:
    """Return the numbers of the layers that get a LoRA; None for all. Raise UserError if there are fewer.

    architecture: the model's transformers configuration.
    """
    if lora.last_layers is None:
        return None
    layers = getattr(architecture.get_text_config(), "num_hidden_layers", 0)
    if lora.last_layers > layers:
        raise UserError(f"model.lora.last_layers={lora.last_layers} is more than the model's {layers} layers")
    return list(range(layers - lora.last_layers, layers))


def attach(model: Any, lora: LoRA, seed: int, name: str) -> Any:
    """Return the model with a LoRA that changes nothing yet (B = 0, A seeded).

    name: of the model, for messages. Raise UserError where `lora` does not fit the model's layers.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)  # PEFT draws A from the global generator
    layers = layers_to_adapt(lora, model.config)
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(lora, model, layers),
        exclude_modules=_all_below(beside_text(model)),
        layers_to_transform=layers,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        task_type="CAUSAL_LM",
    )
    absent = _absent(lora, model)
    linear = _linear_names(model) if absent else []  # PEFT gives them other names
    try:
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(
            f"model.lora.target_modules={lora.target_modules} does not fit {name}: {error}"
        ) from error
    if layers is not None:
        _check_adapted(adapted, lora, layers)
    if absent:
        warnings.warn(
            f"model.lora.target_modules names {', '.join(absent)}, which {name} does not have: fewer layers "
            f"are adapted than it says; the linear ones are {', '.join(linear)}",
            stacklevel=3,
        )
    return adapted


def _absent(lora: LoRA, model: Any) -> list[str]:
    """Return the names in target_modules that no module has; PEFT passes over them if it finds another."""
    named = [] if isinstance(lora.target_modules, str) else lora.target_modules
    modules = [f".{name}" for name, _ in model.named_modules()]
    return [target for target in named if not any(name.endswith(f".{target}") for name in modules)]


def _all_below(names: Sequence[str]) -> str | None:
    """Return the regular expression that PEFT finds these modules by, and those within; None for none."""
    return rf"({'|'.join(map(re.escape, names))})(\..*)?" if names else None


def _targets(lora: LoRA, model: Any, layers: list[int] | None) -> str | list[str]:
    """Return target_modules as PEFT takes it: with the layers given it must be a list of names."""
    targets = lora.target_modules
    if not isinstance(targets, str):
        return list(targets)
    return targets if layers is None else _linear_names(model)


def _linear_names(model: Any) -> list[str]:
    """Return the last parts of the names of all linear layers but the output head. GPT-2's are Conv1D."""
    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    linear = [
        name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head
    ]
    return sorted({name.rpartition(".")[2] for name in linear})


def _check_adapted(model: Any, lora: LoRA, wanted: list[int]) -> None:
    """Raise UserError unless exactly the wanted layers are adapted.

    PEFT passes over layers without these modules, and takes a module's full name wherever it is.
    """
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    layer = {name: next((int(part) for part in name.split(".") if part.isdigit()), None) for name in names}
    lacking = [n for n in wanted if n not in layer.values()]
    outside = [name for name in names if layer[name] not in wanted]
    if lacking or outside:
        what = f"layers {lacking} have none of them" if lacking else f"{outside[0]} is not in these layers"
        raise UserError(
            f"model.lora.last_layers={lora.last_layers} does not go with "
            f"model.lora.target_modules={lora.target_modules}: {what}; set last_layers=null, or other modules"
        )


def base_model(model: Any) -> Any:
    """Return the transformers model with its adapters in place, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
