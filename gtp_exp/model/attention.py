"""Check which implementation of attention a model is loaded with."""

from __future__ import annotations

from enum import Enum

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from gtp_exp.errors import UserError


class Attention(Enum):
    """Names transformers' implementations of attention.

    Rows that lie end to end are kept apart around the same implementation: sdpa and eager run for each row,
    or for all in a rectangle on a GPU; flash attention takes the rows' bounds itself.
    """

    SDPA = "sdpa"
    FLASH = "flash_attention_2"
    EAGER = "eager"


def check_attention(attention: Attention | None, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError for flash attention where it cannot run. None: transformers chooses."""
    if attention is not Attention.FLASH:
        return
    asked = f"model.attention={attention.value}"
    if device.type != "cuda":
        raise UserError(
            f"{asked} runs on a GPU only, and the job is on {device.type}; set model.attention=sdpa"
        )
    if dtype is torch.float32:
        raise UserError(f"{asked} computes in half precision only; set model.precision=bf16")
    if not is_flash_attn_2_available():
        raise UserError(
            f"{asked} needs the package flash-attn: pip install flash-attn --no-build-isolation; "
            "or set model.attention=sdpa"
        )
