"""What is compared on the same model and examples: a plain LoRA training step, and this project's engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gtp_exp.__main__ import conf_dir
from gtp_exp.config import build
from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.gradients.accumulate import Transform
from gtp_exp.gradients.checkpoints import Moments
from gtp_exp.gradients.collect import shard_features
from gtp_exp.gradients.directions import Direction
from gtp_exp.gradients.engines.adapters import check_differentiable, sizes
from gtp_exp.gradients.engines.base import GradientEngine, gradients_of
from gtp_exp.gradients.engines.choose import Engine, EngineChoice, choose_engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.engines.memory import halving
from gtp_exp.gradients.sketch import Sketch, SketchKind, make_projection
from gtp_exp.model.device import Precision
from gtp_exp.model.loading import ModelConfig, ModelSource, prepare
from gtp_exp.model.lora import LoRA
from gtp_exp.model.loss import Reduction

PLAIN_BATCH = 8
SKETCH = Sketch(SketchKind.COUNTSKETCH, dim=8192, nonzeros=1)
WHOLE = Sketch(SketchKind.NONE, dim=0, nonzeros=1)
FIRST_TOKEN = 16  # the ones before it are special

Method = Callable[[Sequence[TokenizedExample]], object]


@dataclass(frozen=True)
class Weights:
    """Names the model to load; travels to the processes that measure memory."""

    model: str  # option of conf/model
    path: str | None  # a local folder in place of the option's own source
    cache: Path

    def load(self, precision: Precision, r: int) -> Any:
        """With LoRA of rank r on the attention's projections, as a run of gtp_exp would load it, but with B
        drawn at random: at zero, as training starts, the gradient of A would be zero."""
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            node = OmegaConf.to_container(compose("config", [f"model={self.model}"]).model)
        config: ModelConfig = build(node, "model")  # type: ignore[arg-type]
        if self.path is not None:
            config = replace(config, source=ModelSource.HUB, name_or_path=self.path)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        lora = LoRA(r=r, alpha=2 * r, dropout=0.0, target_modules=targets, last_layers=None)
        config = replace(config, precision=precision, lora=lora)
        model = prepare(config, self.cache, torch.device("cpu")).load_trainable(seed=0).model
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        return model


def zipf_examples(n: int, vocabulary: int) -> list[TokenizedExample]:
    """Random tokens, 40 to 256 of them, mean 126: many short chats and few long ones, in random order. The
    second half of each is the completion.

    Frequent tokens are frequent, as in text (Zipf's law; byte-pair encodings number tokens by frequency,
    after the special ones). Uniform draws are mostly tokens the model hardly knows: in some such chats the
    gradient in bf16 is off by its own size, at batch size 1 too, and the engine's check would fail.
    """
    source = random.Random(0)

    def token() -> int:
        return min(FIRST_TOKEN + int(vocabulary ** source.random()), vocabulary - 1)

    lengths = [round(40 + 216 * ((i + 0.5) / n) ** 1.5) for i in range(n)]
    source.shuffle(lengths)
    examples = []
    for i, length in enumerate(lengths):
        ids = tuple(token() for _ in range(length))
        labels = tuple(IGNORE if t < length // 2 else label for t, label in enumerate(ids))
        examples.append(TokenizedExample(f"chat-{i}", ids, labels))
    return examples


def half_of(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Return whole batches of the plain step, from both ends and the middle of the lengths.

    As much of them is padding as of all.
    """
    batches = length_sorted_batches([e.n_tokens for e in examples], PLAIN_BATCH)
    kept = [index for k, index in enumerate(batches) if k % 4 in (0, 3)]
    return [examples[i] for i in sorted(i for index in kept for i in index)]


class PlainStep:
    """Forward, loss and backward of LoRA training on padded length-sorted batches, through the model's own
    forward and loss. No optimizer step, so that it is charged with nothing that ours does not have; dropout
    is 0.
    """

    def __init__(self, model: torch.nn.Module, *, autocast: bool) -> None:
        """autocast: to bf16, over the model's own precision."""
        self._model, self._autocast = model, autocast

    def __call__(self, examples: Sequence[TokenizedExample]) -> None:
        """Leaves the gradient of the last batch in the parameters."""
        for index in length_sorted_batches([e.n_tokens for e in examples], PLAIN_BATCH):
            batch = pad_collate([examples[i] for i in index], pad_id=0)
            self._model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                loss = self._model(**batch, use_cache=False).loss  # mean over completion tokens
            loss.backward()


@dataclass(frozen=True)
class Ours:
    """Runs the engine that `collect` chooses for the model on this machine, and what it does with a shard."""

    model: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    choice: EngineChoice
    engine: GradientEngine

    @classmethod
    def choose(cls, model: torch.nn.Module, examples: Sequence[TokenizedExample]) -> Ours:
        """Choose the engine, its check against autograd included, which warns when it falls back to a slower
        one."""
        parameters = check_differentiable(model)
        choice = choose_engine(
            model,
            parameters,
            examples,
            requested=Engine.AUTO,
            reduction=Reduction.MEAN,
            token_budget=None,
        )
        return cls(model, parameters, choice, _engine(model, parameters, choice))

    def with_kernel(self, kernel: LinearKernel) -> Ours:
        """Return the same method with another kernel for linear layers."""
        choice = replace(self.choice, kernel=kernel)
        return Ours(self.model, self.parameters, choice, _engine(self.model, self.parameters, choice))

    def whole(self) -> Callable[[Sequence[TokenizedExample]], torch.Tensor]:
        """Return every gradient in full, float32 [n, p]."""
        return self._features(WHOLE, Direction.SGD, {})

    def directions(
        self, moments: Mapping[str, Moments], sketch: Sketch = SKETCH
    ) -> Callable[[Sequence[TokenizedExample]], torch.Tensor]:
        """Return the `less` direction of every gradient, sketched: float32 [n, dim]."""
        return self._features(sketch, Direction.LESS, moments)

    def dropped(self, examples: Sequence[TokenizedExample]) -> None:
        """Compute every gradient and do nothing with it."""
        for index in self._batches(examples):
            batch = [examples[i] for i in index]
            halving(batch, lambda part: self.engine.run(part, lambda name, gradients: None))

    def by_name(self, examples: Sequence[TokenizedExample]) -> dict[str, dict[str, torch.Tensor]]:
        """Return gradients by example id and parameter, each from the batch in which `collect` would compute
        it."""
        gradients_by_id = {}
        for index in self._batches(examples):
            for example, gradients in gradients_of(self.engine, [examples[i] for i in index]):
                gradients_by_id[example.id] = gradients
        return gradients_by_id

    def _batches(self, examples: Sequence[TokenizedExample]) -> list[list[int]]:
        return self.engine.batches([e.n_tokens for e in examples], self.choice.token_budget)

    def _features(
        self, sketch: Sketch, direction: Direction, moments: Mapping[str, Moments]
    ) -> Callable[[Sequence[TokenizedExample]], torch.Tensor]:
        transform = Transform(
            directions=[direction],
            projection=make_projection(sketch, sizes(self.parameters), seed=0, checkpoint=0, device="cpu"),
            moments=moments,
            step=100,
            betas=(0.9, 0.999),
            eps=1e-8,
            shapes={name: p.shape for name, p in self.parameters.items()},
        )

        def run(examples: Sequence[TokenizedExample]) -> torch.Tensor:
            budget = self.choice.token_budget
            features, _ = shard_features(self.engine, transform, examples, budget, lambda batch: None)
            return features[direction.value]

        return run


def _engine(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], choice: EngineChoice
) -> GradientEngine:
    return make_engine(choice.engine, model, parameters, reduction=Reduction.MEAN, kernel=choice.kernel)


def random_moments(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Moments]:
    """Return random Adam moments in place of those of a warm-up: their values do not change the cost."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: Moments(
            exp_avg=1e-3 * torch.randn(p.shape, generator=generator).to(p.device),
            exp_avg_sq=1e-6 * torch.rand(p.shape, generator=generator).to(p.device),
        )
        for name, p in parameters.items()
    }
