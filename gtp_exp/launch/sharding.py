"""Read from Accelerate's configuration whether a job's processes share the weights of its models.

What is read is FSDP2; whatever else splits a model or its training, and options that would not be heeded, are
refused by name. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gtp_exp.errors import UserError

# How Accelerate starts processes that each hold a whole model: on one device, or data parallel.
_WHOLE = {"NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"}
_WRAP = "TRANSFORMER_BASED_WRAP"


@dataclass(frozen=True)
class Sharding:
    """Says how the processes share the frozen weights of every decoder layer, by FSDP2."""

    # Whether a layer's weights are let go after its forward pass, and gathered again for the backward one.
    reshard_after_forward: bool = True


def read_sharding(settings: Mapping[str, Any], file: str) -> Sharding | None:
    """Return how weights are shared by a configuration of Accelerate; None where each process holds them all.

    file: its path, for messages. Raises UserError for a way of splitting a model other than FSDP2, and for
    options of FSDP that this project does not heed.
    """
    kind = str(settings.get("distributed_type") or "NO").upper()
    where = f"launch.config_file={file}"
    if settings.get("deepspeed_config") or kind == "DEEPSPEED":
        raise UserError(
            f"{where} asks for DeepSpeed, which is not supported: its engine keeps weights and Adam's "
            "moments in parts that per-row gradients cannot be taken from; use distributed_type: FSDP with "
            "fsdp_version: 2"
        )
    if settings.get("parallelism_config"):
        raise UserError(
            f"{where} has a parallelism_config, which is not supported; use distributed_type: FSDP or "
            "MULTI_GPU"
        )
    if kind in _WHOLE:
        return None
    if kind != "FSDP":
        raise UserError(
            f"{where}: distributed_type={kind} is not supported; use FSDP (fsdp_version: 2) or MULTI_GPU"
        )
    options = dict(settings.get("fsdp_config") or {})
    if str(options.get("fsdp_version") or 1) != "2":
        raise UserError(
            f"{where}: fsdp_version={options.get('fsdp_version')} is not supported, for it hides the layers' "
            "own weights from per-row gradients; set fsdp_version: 2"
        )
    for name in ("fsdp_offload_params", "fsdp_activation_checkpointing"):
        if _true(options.get(name)):
            raise UserError(f"{where}: {name}={options[name]} is not supported; set {name}: false")
    policy = options.get("fsdp_auto_wrap_policy", _WRAP)
    if policy != _WRAP:
        raise UserError(
            f"{where}: fsdp_auto_wrap_policy={policy} is not supported, for weights are shared layer by "
            f"layer; set {_WRAP}"
        )
    return Sharding(_true(options.get("fsdp_reshard_after_forward", True)))


def _true(value: Any) -> bool:
    """Return whether an option is on; Accelerate writes true, 'true' and 1 alike."""
    return str(value).lower() in ("true", "1", "yes")
