"""Two other ways to per-example gradients: LESS's published procedure, and bergson's collector.

Both need a package from PyPI that this project does not depend on; without its own dependencies, of which
these code paths need few:

    pip install --no-deps traker==0.3.2
    pip install --no-deps bergson==2.5.1 simple-parsing docstring-parser jaxtyping wadler-lindig ml_dtypes \
        natsort petname torchopt optree
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.checkpoints import Moments
from gtp_exp.model.parameters import trainable_parameters

INSTALL = {
    "trak": "pip install --no-deps traker==0.3.2",
    "bergson": "pip install --no-deps bergson==2.5.1 simple-parsing docstring-parser jaxtyping wadler-lindig "
    "ml_dtypes natsort petname torchopt optree",
}


def missing(package: str) -> str | None:
    """Return why a peer cannot be measured here, or None."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} cannot be imported ({error}); {INSTALL[package]}"
    return None


class LessProcedure:
    """Features as less/data_selection/collect_grad_reps.py makes them (github.com/princeton-nlp/LESS, commit
    1e4afda) on a machine without CUDA: batch size 1, the flattened gradient through the Adam formula, and
    sixteen of them at a time through TRAK's BasicProjector in blocks of 128, in the model's precision.
    """

    per_call = 16  # examples; the projection matrix is drawn again at every call

    def __init__(self, model: torch.nn.Module, moments: Mapping[str, Moments]) -> None:
        self._model, parameters = model, trainable_parameters(model)
        self._n = sum(p.numel() for p in parameters.values())
        self._avg = torch.cat([moments[name].exp_avg.view(-1) for name in parameters])
        self._avg_sq = torch.cat([moments[name].exp_avg_sq.view(-1) for name in parameters])

    def gradients(self, examples: Sequence[TokenizedExample]) -> torch.Tensor:
        """[n, p]: the Adam directions, before the projection."""
        rows = []
        for example in examples:
            self._model(**pad_collate([example], pad_id=0), use_cache=False).loss.backward()
            flat = torch.cat([p.grad.view(-1) for p in self._model.parameters() if p.grad is not None])
            avg = 0.9 * self._avg + 0.1 * flat
            avg_sq = 0.999 * self._avg_sq + 0.001 * flat**2
            rows.append(avg / torch.sqrt(avg_sq + 1e-8))
            self._model.zero_grad()
        return torch.stack(rows)

    def projector(self, dim: int) -> Any:
        """`project(gradients, model_id=0)` takes [n, p] to [n, dim]. Needs traker."""
        trak = importlib.import_module("trak.projectors")
        return trak.BasicProjector(
            grad_dim=self._n,
            proj_dim=dim,
            seed=0,
            proj_type=trak.ProjectionType.rademacher,
            device=torch.device("cpu"),
            dtype=next(self._model.parameters()).dtype,
            block_size=128,
        )

    def project(self, gradients: torch.Tensor, projector: Any) -> torch.Tensor:
        """In calls of sixteen, rounded to float16 first as the published code does."""
        parts = gradients.split(self.per_call)
        return torch.cat([projector.project(part.to(torch.float16), model_id=0) for part in parts])


class BergsonCollector:
    """Whole LoRA gradients through bergson's GradientCollector: hooks on padded batches within a token
    budget, prepared as bergson prepares a PEFT model. Nothing is projected and nothing is written, which is
    the least it can do. The model's requires_grad flags are changed.
    """

    def __init__(self, model: Any, token_budget: int) -> None:
        self._model, self._token_budget = model, token_budget
        self._targets = importlib.import_module("bergson.utils.peft").detect_peft_modules(model)
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)

    def __call__(self, examples: Sequence[TokenizedExample]) -> list[dict[str, torch.Tensor]]:
        """By example, the flattened gradient of every LoRA module by its name in bergson."""
        from datasets import Dataset

        bergson, data = importlib.import_module("bergson"), importlib.import_module("bergson.data")
        rows = Dataset.from_dict(
            {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
        )
        settings = bergson.IndexConfig(
            run_path="unused", loss_reduction="mean", token_batch_size=self._token_budget
        )
        collector = bergson.GradientCollector(
            model=self._model.base_model,
            data=rows,
            cfg=settings,
            target_modules=self._targets,
            skip_index=True,
        )
        computer = bergson.CollectorComputer(self._model, rows, collector=collector, cfg=settings)
        gradients_of_each: list[dict[str, torch.Tensor]] = [{} for _ in examples]
        # The loop of CollectorComputer.run_with_collector_hooks, without the files it ends with.
        for index in data.allocate_batches([e.n_tokens for e in examples], self._token_budget):
            batch = rows[index]
            tokens, labels, _, mask = data.pad_and_tensor(
                batch["input_ids"], labels=batch["labels"], sync_max_len=False
            )
            with collector.with_batch(mask):
                losses = computer.forward_backward(self._model, tokens, labels, batch)
            for name, gradients in collector.mod_grads.items():
                for i, gradient in zip(index, gradients, strict=True):
                    gradients_of_each[i][name] = gradient
            collector.process_batch(index, losses=losses)
        return gradients_of_each
