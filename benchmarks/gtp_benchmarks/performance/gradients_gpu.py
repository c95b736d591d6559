"""Per-example gradients on a GPU: a batch's examples at once against one by one, and what determinism costs.

    python -m gtp_benchmarks.performance.gradients_gpu                    # two minutes on an H200
    python -m gtp_benchmarks.performance.gradients_gpu --device cpu --layers 1 --examples 10  # does it run

A model of SmolLM2-135M's shape with random weights (LoRA r = 8 on q, k, v, o), examples of 8 to 512 tokens
(mean 140), loss on the second half, Adam's direction, CountSketch to 8192: what a run does for every shard,
without the writing to disk. Each line is the better of two passes; did both give the same bytes?
"""

from __future__ import annotations

import argparse
import os
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from gtp_benchmarks.performance.gradient_methods import random_moments
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.gradients.accumulate import Transform
from gtp_exp.gradients.collect import shard_features
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.adapters import sizes
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.engines.packed import PackedEngine
from gtp_exp.gradients.sketch import Sketch, SketchKind, make_projection
from gtp_exp.model.device import be_deterministic
from gtp_exp.model.loss import Reduction
from gtp_exp.model.parameters import trainable_parameters

LONGEST = 512
VOCABULARY = 49152


def main() -> None:
    """Measure the model in each precision and print one line per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--examples", type=int, default=1500)
    asked = parser.parse_args()
    # As for a job's worker: deterministic products, read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.simplefilter("ignore")
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures the processor")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}", flush=True)
    examples = log_normal_examples(asked.examples)
    few = examples[: asked.examples // 5]  # for what is slow
    for dtype in (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,):
        model = make_model(asked.layers, dtype, device)
        passes = Passes(str(dtype).removeprefix("torch."), model, make_transform(model, device))
        torch.use_deterministic_algorithms(False)
        passes.line("one by one, 16,384 tokens a batch", Engine.PACKED, few, 16384, at_once=False)
        passes.line("padded batches (hooks), 16,384", Engine.HOOKS, examples, 16384)
        passes.line("at once, 16,384", Engine.PACKED, examples, 16384)
        passes.line("at once, 65,536", Engine.PACKED, examples, 65536)
        be_deterministic(device)
        passes.line("at once, 65,536, deterministic", Engine.PACKED, examples, 65536)


@dataclass(frozen=True)
class Passes:
    """Measures passes of one model in one precision."""

    precision: str
    model: torch.nn.Module
    transform: Transform

    def line(
        self, what: str, kind: Engine, rows: Sequence[TokenizedExample], budget: int, at_once: bool = True
    ) -> None:
        """Time two passes, and print their rate and whether both gave the same bytes."""
        parameters = trainable_parameters(self.model)
        engine = make_engine(
            kind, self.model, parameters, reduction=Reduction.MEAN, kernel=LinearKernel.DEFAULT
        )
        if isinstance(engine, PackedEngine):
            engine._at_once = at_once
        seconds, sketches = [], []
        for _ in range(2):
            start = time.perf_counter()
            features, _norms = shard_features(engine, self.transform, rows, budget, lambda batch: None)
            seconds.append(time.perf_counter() - start)  # they are on the CPU: nothing is pending
            sketches.append(features[Direction.ADAM.value])
        rate = sum(e.n_tokens for e in rows) / min(seconds)
        same = "same bytes" if torch.equal(*sketches) else "other bytes the second time"
        print(f"{self.precision:9} {what:36} {rate:10,.0f} tokens/s  {same}", flush=True)


def make_model(layers: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return a random Llama with LoRA on its attention, the frozen weights in `dtype`."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(LlamaForCausalLM(shape), lora).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
            elif "lora_B" in name:  # or the gradient of A would be zero
                parameter.normal_(std=0.02)
    return model.eval()


def log_normal_examples(n: int) -> list[TokenizedExample]:
    """Return rows of random tokens with log-normal lengths; the second half of each carries the loss."""
    source, rows = random.Random(0), []
    for i in range(n):
        length = min(LONGEST, max(8, int(source.lognormvariate(4.7, 0.7))))
        ids = tuple(source.randrange(3, VOCABULARY) for _ in range(length))
        rows.append(TokenizedExample(f"row-{i}", ids, (IGNORE,) * (length // 2) + ids[length // 2 :]))
    return rows


def make_transform(model: torch.nn.Module, device: torch.device) -> Transform:
    """Return an Adam direction with random moments and a CountSketch to 8192."""
    parameters = trainable_parameters(model)
    return Transform(
        directions=(Direction.ADAM,),
        projection=make_projection(
            Sketch(SketchKind.COUNTSKETCH, 8192, 1), sizes(parameters), seed=0, checkpoint=0, device=device
        ),
        moments=random_moments(parameters),
        step=10,
        betas=(0.9, 0.999),
        eps=1e-8,
        shapes={name: p.shape for name, p in parameters.items()},
    )


if __name__ == "__main__":
    main()
