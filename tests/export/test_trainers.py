"""Other trainers read what a run leaves and what is exported for them, by their own code where it is there.

None of them is a dependency. TRL, axolotl and llamafactory are installed beside with `pip install --no-deps`.
"""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from test_experiment import run
from transformers import AutoModelForCausalLM, AutoTokenizer
from written import FIRST_ONLY, LAST_ONLY, PLAIN, REASONS, SEVERAL, SYSTEM, TOOLS, row, write_run

from gtp_exp.export.command import main

IGNORE = -100
# The tiny model's template, with a place for tools and marks around what the assistant writes.
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.location)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def exported(name, rows, tmp_path):
    run, out = write_run(tmp_path / "run", rows), tmp_path / "out"
    assert main([str(run), "--format", name, "--out", str(out)]) == 0
    return out


def trainer(tiny, rows, folder, **settings):
    """TRL's trainer of the tiny model, for two steps on the CPU."""
    tokenizer = tokenizer_of(tiny)
    trl = pytest.importorskip("trl")
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
    of, tokenizer = trainer(tiny, load(exported("trl", rows, tmp_path), tmp_path), tmp_path / "sft")
    assert trained_texts(of, tokenizer) == [f"{text}<|im_end|>" for text in ("Yes.", "No.", "Perhaps.")]
    whole = [tokenizer.decode(row["input_ids"]) for row in of.train_dataset]
    assert "Be brief." in whole[1] and "weather" in whole[1] and "weather" not in whole[0]
    of.train()
    assert of.state.global_step == 2 and len(losses(of)) == 2


def test_of_messages_every_answer_is_trained(tiny, tmp_path):
    rows = [row("a", PLAIN), row("b", SEVERAL)]
    read = load(exported("trl", rows, tmp_path), tmp_path)
    of, tokenizer = trainer(tiny, read, tmp_path / "sft", assistant_only_loss=True)
    assert trained_texts(of, tokenizer) == ["Yes.<|im_end|>", "Yes.<|im_end|>Perhaps.<|im_end|>"]
    of.train()
    assert of.state.global_step == 2


def test_axolotl_trains_the_marked_answers_and_their_ends(tiny, tmp_path):
    strategy = pytest.importorskip("axolotl.prompt_strategies.chat_template")
    from axolotl.utils.dict import DictDefault

    rows = [row("a", SYSTEM, json.dumps(TOOLS)), row("b", SEVERAL), row("c", LAST_ONLY), row("d", FIRST_ONLY)]
    out, tokenizer = exported("axolotl", rows, tmp_path), tokenizer_of(tiny)
    (entry,) = OmegaConf.to_container(OmegaConf.load(out / "axolotl.yaml"))["datasets"]
    settings = DictDefault(
        {"sequence_len": 2048, "train_on_inputs": False, "chat_template": "tokenizer_default"}
    )
    tokenize = strategy.load(tokenizer, settings, DictDefault(entry)).tokenize_prompt
    found = [tokenize(read) for read in load(out, tmp_path)]
    trained = [tokenizer.decode([t for t in f["labels"] if t != IGNORE]) for f in found]
    answers = (["No."], ["Yes.", "Perhaps."], ["Perhaps."], ["Yes."])
    assert trained == ["".join(f"{text}<|im_end|>" for text in row) for row in answers]
    texts = [tokenizer.decode(f["input_ids"]) for f in found]
    assert "Be brief." in texts[0] and '"properties": {"place"' in texts[0] and "weather" not in texts[1]


def test_llama_factory_aligns_every_row(tmp_path):
    converter = pytest.importorskip("llamafactory.data.converter")
    from llamafactory.data.parser import get_dataset_list

    rows = [row("a", SYSTEM, json.dumps(TOOLS)), row("b", SEVERAL), row("c", REASONS)]
    out = exported("llama_factory", rows, tmp_path)
    (described,) = get_dataset_list(["gtp_selected"], str(out))
    align = converter.SharegptDatasetConverter(described, None)
    found = [align(read) for read in load(out, tmp_path)]
    assert [f["_system"] for f in found] == ["Be brief.", "", ""]
    assert [f["_tools"] for f in found] == [json.dumps(TOOLS), "", ""]
    contents = [[t["content"] for t in f["_prompt"] + f["_response"]] for f in found]
    assert contents == [
        ["Two?", "No."],
        ["One?", "Yes.", "And three?", "Perhaps."],
        ["Four?", "<think>\nOne more.\n</think>\n\nFive."],
    ]
