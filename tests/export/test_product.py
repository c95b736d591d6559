"""A run's tuned model: a folder that loads from anywhere, stops where it should, and costs no second copy."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from test_experiment import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtp_exp.api.start import RESOLVED_NAME, check_folder
from gtp_exp.config import without_folders
from gtp_exp.export import product
from gtp_exp.export.card import FOLDERS
from gtp_exp.export.product import is_whole, write_product
from gtp_exp.model.stopping import generation_settings, stop_ids
from gtp_exp.records.record import MADE_FROM

END = 2  # <|im_end|> of the tiny model


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(outputs):
    return run(outputs, "selector=random")


@pytest.fixture(scope="module")
def folder(outputs, first):
    return outputs / "run" / "model"


def trained_by(outputs, record):
    return outputs / "cache" / "finetune" / record.stages["finetune"].key / "model"


def test_the_folder_holds_what_a_tuned_model_needs(folder):
    names = {path.name for path in folder.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "generation_config.json",
        "README.md",
    } <= names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".part"))}


def test_the_cards_own_words_load_it_in_another_folder_and_write_an_answer(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(code.replace('"."', repr(str(folder))), "README.md", "exec"), names)
    assert isinstance(names["answer"], str) and names["settings"].eos_token_id == END


def test_the_tokenizer_writes_what_was_trained_with(folder, tiny):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    assert tokenizer.apply_chat_template(chat) == tiny.tokenizer.apply_chat_template(chat)


def test_generation_ends_with_the_turn_where_the_bases_settings_end_elsewhere(tiny, tmp_path):
    assert stop_ids(tiny.tokenizer) == [END]
    for given, stops in ((5, [END, 5]), ([END, 7], [END, 7]), (END, END)):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given, "top_k": 9}))
        found = generation_settings(str(tmp_path), None, tiny.tokenizer)
        assert (found["eos_token_id"], found["top_k"]) == (stops, 9)
    (tmp_path / "generation_config.json").unlink()
    found = generation_settings(str(tmp_path), None, tiny.tokenizer)
    assert (found["eos_token_id"], found["pad_token_id"], found["bos_token_id"]) == (END, 0, 1)


def test_the_card_tells_how_it_was_made_and_nothing_of_this_machine(folder, first, outputs):
    card = (folder / "README.md").read_text()
    assert "gtp-exp-export RUN --merge OUT" in card  # its base is a local folder
    values = first.metrics["toy_sums"]
    assert f"| toy_sums | acc | {first.untuned['toy_sums']['acc']:.4g} | {values['acc']:.4g} |" in card
    assert f"4 of 40 rows, {first.selection.n_tokens} tokens" in card and "learning_rate" in card
    for private in (str(outputs), str(outputs.parent), socket.gethostname()):
        assert private not in card
    paths = [path for path in folder.iterdir() if str(outputs) in path.read_bytes().decode(errors="replace")]
    assert [path.name for path in paths] == ["adapter_config.json"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/me/ids.txt", "ids.txt"),
        ({"a": ["~/x/pool.jsonl", 3]}, {"a": ["pool.jsonl", 3]}),
        ("owner/name", "owner/name"),
        ("../../me/a", "a"),
    ],
)
def test_a_path_in_a_setting_shrinks_to_its_name(value, told):
    assert without_folders(value, FOLDERS) == told


def test_an_adapter_of_a_hub_model_names_it_by_id_and_commit(tiny, first, outputs, tmp_path):
    config = replace(tiny.config, source=type(tiny.config.source).HUB, name_or_path="owner/name")
    identity = {**tiny.identity, "weights": "owner/name@c0ffee"}
    model = replace(tiny, config=config, location="owner/name", identity=identity)
    record = replace(first, model=identity)
    written = write_product(tmp_path, model, trained_by(outputs, first), "key", record)
    adapter = json.loads((written / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("owner/name", "c0ffee")
    card = (written / "README.md").read_text()
    assert "base_model: owner/name\n" in card and "`owner/name`, revision `c0ffee`" in card
    assert "--merge" not in card


def test_whole_weights_load_and_take_their_room_on_the_disk_once(outputs, tmp_path, monkeypatch):
    record = run(outputs, "selector=random", "model.lora=null", directory=outputs / "full")
    folder, cached = outputs / "full" / "model", trained_by(outputs, record)
    assert os.path.samefile(folder / "model.safetensors", cached / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = load_file(cached / "model.safetensors")
    assert torch.equal(model.get_input_embeddings().weight, weights["model.embed_tokens.weight"])
    assert model.generation_config.eos_token_id == END
    assert str(outputs) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert "--merge" not in (folder / "README.md").read_text()


def test_where_there_are_no_links_weights_are_copied(outputs, first, tiny, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(product.os, "link", no_links)
    cached = trained_by(outputs, first)
    folder = write_product(tmp_path, tiny, cached, "key", first)
    copy, original = folder / "adapter_model.safetensors", cached / "adapter_model.safetensors"
    assert copy.read_bytes() == original.read_bytes() and not copy.samefile(original)
    assert is_whole(folder, "key") and not is_whole(folder, "other")


def test_a_job_that_is_started_again_keeps_what_is_whole_and_mends_what_is_not(outputs):
    directory = outputs / "again"
    weights = directory / "model" / "adapter_model.safetensors"

    def start(*overrides):
        run(outputs, "selector=random", *overrides, directory=directory)
        return weights.stat().st_ctime_ns, weights.read_bytes()

    made = start()
    assert start() == made
    (directory / "model.part").mkdir()
    weights.unlink()
    weights.write_bytes(made[1][:100])
    assert start()[1] == made[1] and not (directory / "model.part").exists()
    assert start("seed=5")[1] != made[1]
    run(outputs, "selector=random", "until=selection", directory=directory)
    assert not (directory / "model").exists()


@pytest.mark.parametrize("change", ["seed=5", "until=selection"])
def test_a_job_killed_while_an_earlier_model_gives_way_can_be_started_again(outputs, monkeypatch, change):
    directory = outputs / "killed"
    run(outputs, "selector=random", directory=directory)
    unlink = os.unlink

    def killed(path, *, dir_fd=None):
        if dir_fd is None or MADE_FROM not in os.listdir(dir_fd):
            return unlink(path, dir_fd=dir_fd)
        unlink(MADE_FROM, dir_fd=dir_fd)  # which may be the first to go
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "unlink", killed)
        run(outputs, "selector=random", change, directory=directory)
    (directory / RESOLVED_NAME).touch()  # which the command line has written
    check_folder(directory)
    run(outputs, "selector=random", change, directory=directory)
    left = sorted(path.name for path in directory.glob("model*"))
    assert left == ([] if change == "until=selection" else ["model"])


def test_a_run_that_measures_on_rows_held_back_tells_their_loss(outputs):
    record = run(outputs, "selector=random", "until=validation", directory=outputs / "validated")
    card = (outputs / "validated" / "model" / "README.md").read_text()
    assert f"{record.validation.tuned.nats_per_token:.4g} |" in card
    AutoPeftModelForCausalLM.from_pretrained(outputs / "validated" / "model")
