"""TRL trains on what a run leaves and on what is exported for it; skipped where TRL is not installed."""

from __future__ import annotations

import json

import pytest
from test_experiment import run
from transformers import AutoModelForCausalLM, AutoTokenizer
from written import LAST_ONLY, PLAIN, SEVERAL, SYSTEM, TOOLS, row, write_run

from gtp_exp.export.command import main

trl = pytest.importorskip("trl")
IGNORE = -100
# The tiny model's template, with a place for tools and marks around what the assistant writes.
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trainer(tiny, rows, folder, **settings):
    """TRL's trainer of the tiny model, for two steps on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.location)
    tokenizer.chat_template = TEMPLATE
    args = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny.location)
    return trl.SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer), tokenizer


def losses(of):
    return [entry["loss"] for entry in of.state.log_history if "loss" in entry]


def trained_texts(of, tokenizer):
    rows = [[t for t in row["labels"] if t != IGNORE] for row in of.train_dataset]
    return [tokenizer.decode(row) for row in rows]


def load(folder, tmp_path):
    from datasets import load_dataset

    files = {"data_files": str(folder / "train.jsonl")} if (folder / "train.jsonl").is_file() else {}
    name = "json" if files else str(folder)
    return load_dataset(name, split="train", cache_dir=str(tmp_path / "hf"), **files)


def test_two_steps_on_the_rows_as_a_run_leaves_them(tiny, tmp_path):
    run(tmp_path, "selector=random", "until=selection")
    rows = load(tmp_path / "run" / "selected", tmp_path)
    of, _ = trainer(tiny, rows, tmp_path / "sft")
    of.train()
    assert of.state.global_step == 2 and len(losses(of)) == 2 and all(loss > 0 for loss in losses(of))


def test_of_prompt_and_completion_the_last_answer_and_its_end_are_trained(tiny, tmp_path):
    rows = [row("a", PLAIN), row("b", SYSTEM, json.dumps(TOOLS)), row("c", LAST_ONLY)]
    main([str(write_run(tmp_path / "run", rows)), "--format", "trl", "--out", str(tmp_path / "out")])
    of, tokenizer = trainer(tiny, load(tmp_path / "out", tmp_path), tmp_path / "sft")
    assert trained_texts(of, tokenizer) == [f"{text}<|im_end|>" for text in ("Yes.", "No.", "Perhaps.")]
    whole = [tokenizer.decode(row["input_ids"]) for row in of.train_dataset]
    assert "Be brief." in whole[1] and "weather" in whole[1] and "weather" not in whole[0]
    of.train()
    assert of.state.global_step == 2 and len(losses(of)) == 2


def test_of_messages_every_answer_is_trained(tiny, tmp_path):
    rows = [row("a", PLAIN), row("b", SEVERAL)]
    main([str(write_run(tmp_path / "run", rows)), "--format", "trl", "--out", str(tmp_path / "out")])
    of, tokenizer = trainer(
        tiny, load(tmp_path / "out", tmp_path), tmp_path / "sft", assistant_only_loss=True
    )
    assert trained_texts(of, tokenizer) == ["Yes.<|im_end|>", "Yes.<|im_end|>Perhaps.<|im_end|>"]
    of.train()
    assert of.state.global_step == 2
