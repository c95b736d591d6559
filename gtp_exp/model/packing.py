"""Lay rows end to end without padding, and run a model over them as if each were alone.

A packed pass computes no padding. Its tokens share the linear layers and norms, which see one token at a
time; positions start anew with every row, and attention is kept within each (packed_attention.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.model.device import out_of_memory
from gtp_exp.model.labelled import takes_logits_to_keep
from gtp_exp.model.lora import base_model
from gtp_exp.model.packed_attention import attention_per_sequence
from gtp_exp.model.parameters import half_precision, in_float32
from gtp_exp.model.positions import rope_kinds
from gtp_exp.model.rectangle import Rectangle
from gtp_exp.model.sharding import is_sharded

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = 1e-3  # of the logits in the l2 norm; in float32 rounding makes about 1e-6
_HALF_TOLERANCE = 0.2
_ENOUGH_TOKENS = 128  # of a row, to see whether others reach into it


@dataclass(frozen=True)
class EndToEnd:
    """Holds rows laid end to end as one sequence of T tokens."""

    tokens: list[int]  # [T]
    positions: list[int]  # [T], from 0 in every row
    labels: list[int]  # [T], IGNORE also at every row's first token, which nothing of its own predicts
    bounds: list[tuple[int, int]]  # first token of each row and the one after its last


def lay_end_to_end(rows: Sequence[TokenizedExample]) -> EndToEnd:
    """Return the rows as one sequence, in their order."""
    tokens, positions, labels, bounds = [], [], [], []
    for row in rows:
        bounds.append((len(tokens), len(tokens) + row.n_tokens))
        tokens += row.input_ids
        positions += range(row.n_tokens)
        labels += [IGNORE, *row.labels[1:]]
    return EndToEnd(tokens, positions, labels, bounds)


@contextlib.contextmanager
def rows_apart(model: torch.nn.Module, bounds: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Keep the rows of a packed pass apart inside, forward and backward; yield more inputs for the model.

    Pass it no attention mask.
    """
    base = base_model(model)
    device = next(base.parameters()).device
    # A GPU attends in all rows at once, padded; a CPU in one after the other.
    rectangle = None if device.type == "cpu" else Rectangle(bounds, device)
    with attention_per_sequence(base, bounds, rectangle, frugal=True) as extra:
        yield {**extra, "use_cache": False}


def mixing_layers(model: torch.nn.Module) -> str | None:
    """Return why the model's layers may mix packed rows by what its configuration says, or None."""
    config = base_model(model).config.get_text_config()
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS):
        return f"the model has layers of type {', '.join(unknown)}, which may mix packed sequences"
    return None


def packing_obstacle(model: torch.nn.Module, rows: Sequence[TokenizedExample]) -> str | None:
    """Return why rows must not be packed for this model, or None. The model is left in evaluation mode.

    The logits of a few rows, the longest among them, are compared: packed, and each row alone.
    """
    if reason := mixing_layers(model):
        return reason
    model.eval()
    config = base_model(model).config.get_text_config()
    by_length = sorted(rows, key=lambda row: row.n_tokens)
    # The longest sees a row before it if it can, and is seen by the one behind.
    tried = [by_length[0], by_length[-1], by_length[len(rows) // 4]]
    if not _looks_at_length(config):
        tried = [_cut(row, _ENOUGH_TOKENS) for row in tried]
    try:
        return _checked_in_float32(model, tried) or _difference(model, tried)
    # Whatever an unforeseen model does with packed rows, it knows padded ones.
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _looks_at_length(config: Any) -> bool:
    """Say whether what a model does with a token may depend on how long its row is: a window of attention, or
    positions that are scaled."""
    scaled = not rope_kinds(config) <= {"default", "linear", "llama3"}
    return bool(getattr(config, "sliding_window", None)) or scaled


def _cut(row: TokenizedExample, n: int) -> TokenizedExample:
    return replace(row, input_ids=row.input_ids[:n], labels=row.labels[:n], answers=())


def _checked_in_float32(model: torch.nn.Module, rows: Sequence[TokenizedExample]) -> str | None:
    """Return the difference where rounding hides nothing: of a model in half precision on the same weights,
    widened for the time being if memory allows, and if no other process has a part of them."""
    if not half_precision(model) or is_sharded(model):
        return None
    try:
        with in_float32(model):
            return _difference(model, rows)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    return None


@torch.no_grad()
def _difference(model: torch.nn.Module, rows: Sequence[TokenizedExample]) -> str | None:
    """Return how the logits of packed rows differ from those of each row alone, where they do."""
    device = next(model.parameters()).device
    packed = lay_end_to_end(rows)
    inputs = {"input_ids": [packed.tokens], "position_ids": [packed.positions]}
    inputs = {name: torch.tensor(values, device=device) for name, values in inputs.items()}
    compared = [_ends(row.n_tokens, device) for row in rows]
    places = [start + places for (start, _), places in zip(packed.bounds, compared, strict=True)]
    with rows_apart(model, packed.bounds) as extra:
        together = _logits_at(torch.cat(places), model, **inputs, **extra)
    tolerance = _HALF_TOLERANCE if half_precision(model) else _TOLERANCE
    parts = together.split([len(places) for places in compared])
    for row, places, found in zip(rows, compared, parts, strict=True):
        tokens = torch.tensor([row.input_ids], device=device)
        alone = _logits_at(places, model, input_ids=tokens, use_cache=False)
        error = float((found - alone).norm() / alone.norm())
        if not error <= tolerance:
            return f"the logits of packed rows differ by {error:.1e} from those of a row alone"
    return None


def _ends(n: int, device: torch.device) -> torch.Tensor:
    """Return the first and the last positions of a row of n tokens; all of them where it is not long."""
    positions = torch.arange(n, device=device)
    if n <= 2 * _ENOUGH_TOKENS:
        return positions
    return torch.cat([positions[:_ENOUGH_TOKENS], positions[-_ENOUGH_TOKENS:]])


def _logits_at(positions: torch.Tensor, model: Any, **inputs: Any) -> torch.Tensor:
    """Return the logits of a single sequence at some positions, [n, vocabulary] in float32."""
    if takes_logits_to_keep(model):
        return model(**inputs, logits_to_keep=positions).logits[0].float()
    return model(**inputs).logits[0, positions].float()
