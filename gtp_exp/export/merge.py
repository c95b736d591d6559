"""Add a run's adapter to the weights of its base model, and write a whole model that loads anywhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.export.card import Kind, model_card
from gtp_exp.export.product import ADAPTER_CONFIG, CARD, files_of, is_undamaged, is_whole
from gtp_exp.export.runs import model_config, no_model, read_run
from gtp_exp.files import folder_aside, read_json, write_whole
from gtp_exp.model.loading import Model, ModelConfig, prepare
from gtp_exp.model.quantized import Quantization, with_dense_weights
from gtp_exp.paths import at_home
from gtp_exp.records.record import MADE_FROM, MODEL_FOLDER, RunRecord


def merge(run: Path, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Write a run's tuned model to the new folder `out` as one model, without an adapter, and return `out`.

    The weights keep the precision of the base's; where the base was quantised they have that of the
    computation, and are those that the adapter was tuned around. A run that trained every weight is copied.
    Raises UserError for a run without a model, a folder that exists, and a base that is gone or has changed.
    """
    if out.exists():
        raise UserError(f"--merge {out} exists; give a new folder, or remove it")
    record = read_run(run)
    folder = run / MODEL_FOLDER
    finetuned = record.stages.get("finetune")
    if finetuned is None or not is_whole(folder, finetuned.key):
        raise no_model(run, record)
    config = model_config(record)
    if config.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{config.name_or_path} brings code of its own, which would run on this machine; if you trust "
            "it, add --trust-remote-code"
        )
    adapted = config.lora is not None
    if adapted != (folder / ADAPTER_CONFIG).is_file() or not is_undamaged(folder):
        raise no_model(run, record)
    with folder_aside(out) as part:
        if adapted:
            _write_merged(run, record, config, part)
        left_out = {ADAPTER_CONFIG, MADE_FROM, CARD}
        for file in files_of(folder):
            if file.name not in left_out and not (adapted and file.suffix == ".safetensors"):
                to = part / file.relative_to(folder)
                to.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, to)
        kind = Kind.MERGED if adapted else Kind.WEIGHTS
        write_whole(part / CARD, [model_card(record, config, kind)])
    return out


def _write_merged(run: Path, record: RunRecord, config: ModelConfig, to: Path) -> None:
    """Write config.json and the merged weights of a run with an adapter."""
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM, GenerationConfig

    adapter = read_json(run / MODEL_FOLDER / ADAPTER_CONFIG)
    with _cache_root(run, record) as cache:
        model = prepare(replace(config, revision=_revision(config, adapter)), cache, torch.device("cpu"))
        _check_base(record, model)
        if config.quantization is Quantization.NONE:
            base: Any = AutoModelForCausalLM.from_pretrained(
                model.location,
                revision=model.config.revision,
                dtype="auto",
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
            )
        else:
            dtype = getattr(torch, str(record.model["dtype"]))
            base = with_dense_weights(replace(model, dtype=dtype).load().model, dtype)
        tuned: Any = PeftModel.from_pretrained(base, str(run / MODEL_FOLDER))
        _part_adapted(base)
        merged: Any = tuned.merge_and_unload(safe_merge=True)
        if any(isinstance(module, BaseTunerLayer) for module in merged.modules()):
            raise UserError(
                f"the base {config.name_or_path} has an adapter of its own, which cannot be merged here; "
                "merge it into its base first, and run the job on that"
            )
        merged.generation_config = GenerationConfig()  # the base's may be one that is refused on saving
        merged.save_pretrained(to)


def _part_adapted(model: Any) -> None:
    """Give the output head a weight of its own where it shares that of the embeddings and one of the two has
    an adapter: merged into one weight it would change both. PEFT says so in the configuration then."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = [isinstance(layer, BaseTunerLayer) for layer in layers]
    plain = [layer.get_base_layer() if has else layer for layer, has in zip(layers, adapted, strict=True)]
    if any(adapted) and None not in plain and plain[0].weight is plain[1].weight:
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)


def _revision(config: ModelConfig, adapter: Any) -> str | None:
    """Return the commit of a hub model that was trained on; the base may have others by now."""
    return config.revision or (adapter or {}).get("revision")


def _check_base(record: RunRecord, model: Model) -> None:
    """Raise UserError where the base is not the one that was trained on."""
    trained, found = record.model.get("weights"), model.identity["weights"]
    if trained != found:
        raise UserError(
            f"the base {model.config.name_or_path} has changed since the run: its content is {found}, and "
            f"was {trained}; put the earlier one in its place, or run the job again"
        )


@contextmanager
def _cache_root(run: Path, record: RunRecord) -> Iterator[Path]:
    """Give the cache that holds the run's built-in base model; a temporary one where it is gone."""
    outputs = at_home(str(record.config.get("outputs", "outputs")))
    for folder in (*run.resolve().parents, outputs):
        if (folder / "cache" / "models").is_dir():
            yield folder / "cache"
            return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
