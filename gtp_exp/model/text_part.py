"""Find what of a model takes no part in text: the layers for images of one that reads both."""

from __future__ import annotations

from typing import Any


def beside_text(model: Any) -> list[str]:
    """Return the names of the modules that text does not pass through, as far as the configuration tells text
    from other input; none for a model of text alone.

    Rows are text. Training such modules changes nothing, they have no gradient, and data-parallel training
    would wait for one. model: of transformers, without adapters.
    """
    if model.config.get_text_config() is model.config:
        return []
    parts = (model.get_input_embeddings(), model.get_decoder(), model.get_output_embeddings())
    passed = {module for part in parts if part is not None for module in part.modules()}
    names: list[str] = []
    for name, module in model.named_modules():
        below = any(name.startswith(f"{outer}.") for outer in names)
        if not below and passed.isdisjoint(module.modules()):
            names.append(name)
    return names
