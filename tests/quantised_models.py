"""Small models with their linear layers in four or eight bits: a stand-in, and bitsandbytes's own layers."""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import base
from transformers import AutoModelForCausalLM

from gtp_exp.model.quantized import Quantization, compute_dense, loading_options

CPU = torch.device("cpu")


class RoundedLinear(torch.nn.Linear):
    """Stores whole numbers in eight bits and a scale per output, and computes with their product."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        scale = plain.weight.abs().amax(1, keepdim=True) / 7
        whole = (plain.weight / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.scale = scale.double()
        self.bias = plain.bias

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight.to(dtype) * self.scale.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.dense_weight(x.dtype), self.bias)


def rounded(family: str, dtype: torch.dtype = torch.float32):
    """A model whose linear layers, but for the head, are `RoundedLinear`."""
    model = base(family, dtype)
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not model.get_output_embeddings():
            model.set_submodule(name, RoundedLinear(module))
    return model


def by_bitsandbytes(
    family: str, quantization: Quantization, folder: Path, dtype: torch.dtype = torch.float32
):
    """A model as our loader quantises it, on the CPU."""
    if not (folder / "config.json").is_file():
        base(family).save_pretrained(folder)
    options = loading_options(quantization, dtype, CPU)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    compute_dense(model)
    return model.eval()
