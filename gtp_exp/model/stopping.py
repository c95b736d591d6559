"""Say where a model has been taught to end its turn, and how it is to generate, so that it stops there."""

from __future__ import annotations

from typing import Any

from gtp_exp.data.examples import IGNORE, Example, Message
from gtp_exp.data.tokenization import encode
from gtp_exp.errors import UserError

_PROBE = Example("", (Message("user", "A"), Message("assistant", "A")))


def stop_ids(tokenizer: Any) -> list[int]:
    """Return the token ids that end a turn: the last one that training puts loss on, and the end of text."""
    (row,) = encode([_PROBE], tokenizer)
    if isinstance(row, str):
        raise UserError(f"the chat template cannot ask a question: {row}; set another chat template")
    end = max(t for t, label in enumerate(row.labels) if label != IGNORE)
    return sorted({row.input_ids[end], tokenizer.eos_token_id} - {None})


def generation_settings(location: str, revision: str | None, tokenizer: Any) -> dict[str, Any]:
    """Return what generation_config.json holds for a tuned model: its base's settings, and where to stop.

    location: of the base, a folder or a hub id. A base without settings of its own gives none.
    """
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(location, revision=revision or "main")
    except OSError:  # it comes without the file
        settings = GenerationConfig()
    given = settings.eos_token_id
    base_stops = [] if given is None else given if isinstance(given, list) else [given]
    stops = list(dict.fromkeys([*stop_ids(tokenizer), *base_stops]))
    settings.eos_token_id = stops[0] if len(stops) == 1 else stops
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(tokenizer, name))
    return {name: value for name, value in settings.to_diff_dict().items() if not name.startswith("_")}
