"""Say what a model's configuration tells of its rotary positions (RoPE), which may be scaled by length."""

from __future__ import annotations

from typing import Any


def rope_kinds(config: Any) -> set[str]:
    """Return how positions are scaled, by the names of transformers; kinds of layers may differ in it."""
    return {part.get("rope_type", "default") for part in _parts(config)}


def scaled_beyond(config: Any) -> int | None:
    """Return the number of tokens beyond which a row changes the positions of all rows in its batch, or None
    where no row does.

    transformers takes the scale of the kinds dynamic and longrope from the last position of the whole batch.
    """
    parts = [part for part in _parts(config) if _by_longest_row(part.get("rope_type", "default"))]
    if not parts:
        return None
    told = [part.get("original_max_position_embeddings") for part in parts]
    told += [getattr(config, f"{name}max_position_embeddings", None) for name in ("original_", "")]
    return min((n for n in told if n is not None), default=0)


def rows_apart_beyond(model: Any) -> int | None:
    """Return the number of tokens beyond which rows must share no batch with shorter ones, or None where all
    may. model: with or without adapters; one without a configuration of transformers scales nothing."""
    config = getattr(model, "config", None)
    return scaled_beyond(config.get_text_config()) if hasattr(config, "get_text_config") else None


def _by_longest_row(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _parts(config: Any) -> list[dict[str, Any]]:
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict)]
