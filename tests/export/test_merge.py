"""The tuned model as one model: the same numbers as adapter and base, and nothing else is needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from test_experiment import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtp_exp.export.command import main
from gtp_exp.records.record import State, write_record


def finished(outputs, *overrides):
    """A run as the command line leaves it."""
    record = run(outputs, "selector=random", "model.precision=fp32", *overrides)
    write_record(replace(record, state=State.COMPLETE), outputs / "run")
    return outputs / "run"


def logits(model, tokenizer):
    chat = [{"role": "user", "content": "What is 3 plus 2?"}, {"role": "assistant", "content": "5"}]
    tokens = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return model.eval()(tokens).logits


def test_the_merged_model_equals_base_and_adapter_and_needs_neither(tmp_path, capsys, monkeypatch):
    folder, out = finished(tmp_path / "outputs", "train.learning_rate=1e-2"), tmp_path / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    expected = logits(adapted, tokenizer)
    with adapted.disable_adapter():
        untuned = logits(adapted, tokenizer)
    monkeypatch.chdir(tmp_path)
    assert main(["outputs/run", "--merge", "merged"]) == 0
    assert "merged" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "outputs")
    moved = out.rename(tmp_path / "elsewhere")
    model = AutoModelForCausalLM.from_pretrained(moved)
    found = logits(model, AutoTokenizer.from_pretrained(moved))
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(untuned, expected, atol=1e-3)
    assert model.generation_config.eos_token_id == 2
    names = {path.name for path in moved.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "chat_template.jinja"} <= names
    assert not [name for name in names if name.startswith(("adapter", "made_from")) or name.endswith(".bin")]
    texts = "".join(path.read_text() for path in moved.iterdir() if path.suffix != ".safetensors")
    assert str(tmp_path) not in texts and "--merge" not in texts


@pytest.mark.parametrize("adapted", ["lm_head", "embed_tokens"])
def test_a_head_and_embeddings_that_share_a_weight_part_where_one_of_them_is_adapted(tmp_path, adapted):
    overrides = ["train.learning_rate=1e-2", f"model.lora.target_modules=[q_proj,{adapted}]"]
    run = finished(tmp_path / "outputs", *overrides)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(run / "model"), tokenizer)
    assert main([str(run), "--merge", str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # by which other programs share the weight


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_merged_as_it_was_tuned_around(quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    from gtp_exp.export.runs import model_config, read_run
    from gtp_exp.model.loading import prepare

    options = [f"model.quantization={quantization}", "train.learning_rate=1e-2", "model.lora.use_dora=true"]
    folder, out = finished(tmp_path / "outputs", *options), tmp_path / "merged"
    record = read_run(folder)
    trained = prepare(model_config(record), tmp_path / "outputs" / "cache", torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    expected = logits(trained.load_tuned(folder / "model").model, tokenizer)
    assert f"stored in {quantization}" in (folder / "model" / "README.md").read_text()
    assert main([str(folder), "--merge", str(out)]) == 0
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert not getattr(merged, "is_quantized", False)
    assert torch.allclose(logits(merged, tokenizer), expected, atol=1e-5)
    assert f"| quantization | {quantization} |" in (out / "README.md").read_text()


def test_a_model_of_which_every_weight_was_trained_is_copied(tmp_path):
    folder, out = finished(tmp_path / "outputs", "model.lora=null"), tmp_path / "merged"
    assert main([str(folder), "--merge", str(out)]) == 0
    copied, own = out / "model.safetensors", folder / "model" / "model.safetensors"
    assert copied.read_bytes() == own.read_bytes() and not copied.samefile(own)
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("damage", ["no adapter", "a byte"])
def test_a_damaged_adapter_is_not_merged(tmp_path, capsys, damage):
    folder = finished(tmp_path / "outputs") / "model"
    if damage == "no adapter":
        (folder / "adapter_config.json").unlink()
    else:
        weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "adapter_model.safetensors").unlink()  # a link to that of the cache
        (folder / "adapter_model.safetensors").write_bytes(weights)
    assert main([str(folder.parent), "--merge", str(tmp_path / "out")]) == 2
    assert "its folder has changed; run it again, from the cache" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def local(tmp_path, tiny):
    """A run on a base model in a folder of the user's."""
    shutil.copytree(tiny.location, tmp_path / "base")
    base = ["model.source=hub", f"model.name_or_path={tmp_path / 'base'}"]
    return finished(tmp_path / "outputs", *base)


def test_a_base_that_has_changed_or_gone_is_told_and_nothing_is_left(tmp_path, local, capsys):
    config = tmp_path / "base" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"rms_norm_eps"', '"rms_norm_eps_was"'))
    assert main([str(local), "--merge", str(tmp_path / "out")]) == 2
    assert "has changed since the run" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    assert main([str(local), "--merge", str(tmp_path / "out")]) == 2
    assert "is neither here nor reachable" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*/config.json")) and not list(tmp_path.glob("*.part"))


def test_a_local_base_is_merged_and_the_card_names_its_folder_alone(tmp_path, local):
    (local / "model" / ".cache" / "huggingface").mkdir(parents=True)  # as an upload leaves it
    assert f"local folder, `{tmp_path.name}/base`" not in (local / "model" / "README.md").read_text()
    assert "A model from a local folder, `base`." in (local / "model" / "README.md").read_text()
    assert main([str(local), "--merge", str(tmp_path / "out")]) == 0


def test_the_named_templates_of_a_tokenizer_are_with_the_tuned_model_and_the_merged_one(tmp_path, tiny):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny.location, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    named = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}" + tokenizer.chat_template}
    tokenizer.chat_template = named
    tokenizer.save_pretrained(base)
    run = finished(tmp_path / "outputs", "model.source=hub", f"model.name_or_path={base}")
    assert main([str(run), "--merge", str(out)]) == 0
    for folder in (run / "model", out):
        assert AutoTokenizer.from_pretrained(folder).chat_template == named


def test_a_record_that_asks_for_foreign_code_or_classes_runs_none(tmp_path, local, capsys):
    path = local / "results.json"
    found = json.loads(path.read_text())
    found["config"]["model"]["trust_remote_code"] = True
    path.write_text(json.dumps(found))
    assert main([str(local), "--merge", str(tmp_path / "out")]) == 2
    assert "add --trust-remote-code" in capsys.readouterr().err
    found["config"]["model"] |= {"trust_remote_code": False, "_target_": "os.system"}
    found["config"]["model"]["lora"] = {"_target_": "os.system", "r": "echo"}
    path.write_text(json.dumps(found))
    assert main([str(local), "--merge", str(tmp_path / "out")]) == 2
    assert "model.lora.r should be int" in capsys.readouterr().err
