"""How far the results of the same job by other processes are apart, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gtp_exp.gradients.store import GradientStore


def entry(folder: Path, stage: str) -> Path:
    """The finished entry of a stage of the run in `folder`, with one task."""
    stages = json.loads((folder / "run" / "results.json").read_text())["stages"]
    return folder / "cache" / stage.split(":")[0] / stages[stage]["key"].split()[0]


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    """|left - right| / |left| in the l2 norm."""
    left, right = left.double(), right.double()
    return float((left - right).norm() / left.norm())


def files(one: Path, two: Path, stage: str, name: str) -> float:
    """The largest relative difference of a tensor in a file of a stage."""
    left, right = (load_file(entry(folder, stage) / name) for folder in (one, two))
    assert left.keys() == right.keys()
    return max(relative(left[key], right[key]) for key in left if left[key].double().norm() > 0)


def gradients(one: Path, two: Path, split: str) -> float:
    """The largest relative difference of a row's features, over rows, checkpoints and directions."""
    stores = [GradientStore.open(entry(folder, f"gradients: {split}") / "store") for folder in (one, two)]
    assert stores[0].ids == stores[1].ids
    rows, worst = torch.arange(stores[0].n), 0.0
    for t in range(len(stores[0].learning_rates)):
        for direction in stores[0].directions:
            pair = (store.features(t, direction).rows(rows).float() for store in stores)
            worst = max(worst, *(relative(a, b) for a, b in zip(*pair, strict=True)))
    return worst


def selection(one: Path, two: Path) -> float:
    """The largest relative difference of the weights of the chosen rows, or of the scores of all.

    The same rows are chosen, whatever their order, or it raises.
    """
    left, right = (load_file(entry(folder, "selection") / "selection.safetensors") for folder in (one, two))
    for found in (left, right):
        found["indices"], order = found["indices"].sort()
        found["weights"] = found["weights"][order]
    assert torch.equal(left.pop("indices"), right["indices"])
    return max(relative(left[key], right[key]) for key in left)


def metrics(one: Path, two: Path) -> float:
    """The largest relative difference of a metric, of the tuned or the untuned model."""
    worst = 0.0
    records = [json.loads((folder / "run" / "results.json").read_text()) for folder in (one, two)]
    for kind in ("metrics", "untuned"):
        for task, values in records[0][kind].items():
            for name, value in values.items():
                other = records[1][kind][task][name]
                if isinstance(value, str):
                    assert value == other
                else:
                    worst = max(worst, abs(value - other) / max(abs(value), 1e-12))
    return worst


def differences(one: Path, two: Path) -> dict[str, float]:
    """The largest relative difference by stage. The rows chosen are the same, or it raises."""
    return {
        "warm-up, weights": files(one, two, "warmup", "checkpoint-1/trainable.safetensors"),
        "warm-up, Adam's moments": files(one, two, "warmup", "checkpoint-1/moments.safetensors"),
        "gradients of the pool": gradients(one, two, "pool"),
        "gradients of the target": gradients(one, two, "target"),
        "weights of the selection": selection(one, two),
        "fine-tuned adapter": files(one, two, "finetune", "model/adapter_model.safetensors"),
        "metrics": metrics(one, two),
    }
