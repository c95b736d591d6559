"""Choose the device and the number type of the computation, and make a GPU deterministic."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path

import torch

from gtp_exp.errors import UserError, first_line

log = logging.getLogger(__name__)


class Precision(Enum):
    """Names the number type that a model computes in."""

    AUTO = "auto"  # bf16 where the hardware computes in it, else fp32
    BF16 = "bf16"
    FP32 = "fp32"
    FP16 = "fp16"  # refused, with the reason: `check_precision`


def check_precision(precision: Precision) -> None:
    """Raise UserError for fp16: gradients of single rows underflow in it unless each has a loss scale."""
    if precision is Precision.FP16:
        raise UserError(
            "model.precision=fp16: the gradients of single rows underflow in it, and one loss scale for "
            "all would lose some and overflow in others; set model.precision=bf16, which has the range of "
            "fp32, or on a GPU without it fp32, with model.quantization=nf4 if memory is short"
        )


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return bf16 where the hardware has it, unless the config says otherwise; log it, for it changes
    results."""
    if precision is Precision.AUTO:
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bf16()
        dtype = torch.bfloat16 if fast else torch.float32
        reason = (
            f"{device.type} {'computes in' if fast else 'lacks fast'} bf16; set model.precision to choose"
        )
    else:
        dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
        reason = f"model.precision={precision.value}"
    log.info("precision: %s (%s)", str(dtype).removeprefix("torch."), reason)
    return dtype


def choose_device(name: str) -> torch.device:
    """Return the device of this name: auto (a GPU if there is one), cpu or cuda."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("launch.device=cuda but PyTorch sees no GPU; use launch.device=auto or cpu")
    return torch.device(name)


def be_deterministic(device: torch.device) -> None:
    """Make a GPU repeat its bytes from run to run; its sums otherwise take their terms as they come.

    An operation that cannot be deterministic then raises RuntimeError.
    """
    if device.type == "cuda":  # with `warn_only`, attention would not
        torch.use_deterministic_algorithms(True)
        # Slow, and only for finding mistakes.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def cpu_has_bf16() -> bool:
    """Say whether the CPU multiplies matrices in bf16. Known on Linux and x86 only; else False."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out."""
    # The CPU allocator has no exception class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_fault(error: BaseException) -> str:
    """Return a message for memory that ran out, with the settings that need less. Returns "" for any other
    error."""
    if not out_of_memory(error):
        return ""
    return (
        f"memory ran out ({first_line(error)}); lower train.micro_batch_size or "
        "gradients.warmup.micro_batch_size (in training), gradients.token_budget (in gradients), "
        "eval_batch_size (in tests) or model.max_length; what is finished is kept"
    )
