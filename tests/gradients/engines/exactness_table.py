"""Print how far the packed engine's gradients are from batch-size-1 autograd, as the table of docs/models.md.

PYTHONPATH=.:tests python tests/gradients/engines/exactness_table.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from quantised_models import by_bitsandbytes, rounded
from small_models import base, make_examples, packed, with_lora, worst_error

from gtp_exp.model.quantized import Quantization

FAMILIES = ("llama", "qwen2", "mistral", "gemma2")


def models(family: str, folder: Path):
    """Yield each way to store the frozen layers."""
    yield lambda: base(family)
    yield lambda: rounded(family)
    yield lambda: by_bitsandbytes(family, Quantization.NF4, folder)
    yield lambda: by_bitsandbytes(family, Quantization.INT8, folder)


def main() -> None:
    """Print a row for each family and kind of adapter."""
    print("| family | adapter | none | stand-in | nf4 | int8 |\n|---|---|---|---|---|---|")
    for family in FAMILIES:
        for adapter, options in (
            ("LoRA", {}),
            ("rsLoRA", {"use_rslora": True}),
            ("DoRA", {"use_dora": True}),
        ):
            with tempfile.TemporaryDirectory() as folder:
                cells = []
                for number, make in enumerate(models(family, Path(folder))):
                    if adapter == "DoRA" and number == 1:  # PEFT does not know the stand-in's weight
                        cells.append("-")
                        continue
                    torch.manual_seed(1)
                    model = with_lora(make(), **options)
                    cells.append(f"{worst_error(model, packed(model), make_examples(9)):.1e}")
            print("|", " | ".join([family, adapter, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
