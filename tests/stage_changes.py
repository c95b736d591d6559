"""Which stages a change of one setting makes anew: held against the pipeline, and against its estimate."""

from __future__ import annotations

import torch

from gtp_exp.model.device import Precision, choose_dtype

AUTO = choose_dtype(Precision.AUTO, torch.device("cpu"))
OTHER_PRECISION = "fp32" if AUTO is torch.bfloat16 else "bf16"

ALL = {
    "warmup",
    "gradients: pool",
    "gradients: target",
    "selection",
    "finetune",
    "evaluation",
    "evaluation of the untuned model",
}

CHANGES = [
    ("seed=1", {"selection", "finetune", "evaluation"}),
    ("budget=5pct", {"selection", "finetune", "evaluation"}),
    ("selector.target_direction=less", {"selection", "finetune", "evaluation"}),
    ("train.epochs=2", {"finetune", "evaluation"}),
    ("train.min_steps=15", {"finetune", "evaluation"}),
    ("benchmark.test_rows=6", {"evaluation", "evaluation of the untuned model"}),
    (
        "gradients.sketch.dim=128",
        {"gradients: pool", "gradients: target", "selection", "finetune", "evaluation"},
    ),
    (
        "gradients.reduction=sum",
        {"gradients: pool", "gradients: target", "selection", "finetune", "evaluation"},
    ),
    ("benchmark.target_rows=5", {"gradients: target", "selection", "finetune", "evaluation"}),
    ("gradients.warmup.epochs=1", ALL - {"evaluation of the untuned model"}),
    ("gradients.warmup_share=0.3", ALL - {"evaluation of the untuned model"}),
    ("gradients.seed=1", ALL - {"evaluation of the untuned model"}),
    (f"model.precision={OTHER_PRECISION}", ALL),
    ("model.system_prompt=Briefly.", ALL),
    ("model.max_length=200", ALL),
    ("model.lora.last_layers=1", ALL),
    ("model@selection_model=tiny", {"selection", "finetune", "evaluation"}),
    ("dataset.rows=30", ALL - {"evaluation of the untuned model"}),
    ("gradients.token_budget=64", set()),
    ("eval_batch_size=2", set()),
    ("tracking=wandb", set()),
]
