"""Shared by all tests: everything offline, and a tiny model that is made once."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per core runs tests

import pytest  # noqa: E402
import torch  # noqa: E402

from gtp_exp.data.examples import Example, Message  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_stays():
    """Collections, of which benchmarks and Accelerate ask for many, pass over what earlier modules left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_config():
    from gtp_exp.model.device import Precision
    from gtp_exp.model.loading import ModelConfig, ModelSource
    from gtp_exp.model.lora import LoRA

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoRA(r=4, alpha=8, dropout=0.0, target_modules=targets, last_layers=None)
    return ModelConfig(ModelSource.TINY, "tiny", None, Precision.FP32, 256, False, None, lora)


@pytest.fixture(scope="session")
def tiny(tiny_config, tmp_path_factory):
    """The tiny model of conf/model/tiny.yaml, prepared (weights are loaded by each user)."""
    from gtp_exp.model.loading import prepare

    return prepare(tiny_config, tmp_path_factory.mktemp("cache"), torch.device("cpu"))


def conversation(i: int, question: str, answer: str, subtask: str = "") -> Example:
    return Example(f"row-{i}", (Message("user", question), Message("assistant", answer)), subtask)


@pytest.fixture(scope="session")
def examples() -> tuple[Example, ...]:
    """24 short rows of different lengths."""
    return tuple(conversation(i, f"What is {i} plus {i * i}?", f"It is {i + i * i}.") for i in range(24))


@pytest.fixture(scope="session")
def tokenized(examples, tiny):
    from gtp_exp.data.tokenization import tokenize

    return tokenize(examples, tiny.tokenizer, max_length=256).examples
