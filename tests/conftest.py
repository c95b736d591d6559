"""Shared by all tests: everything offline, which are slow, and a tiny model that is made once."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import pickle
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes run tests

import pytest  # noqa: E402

from gtp_exp.data.examples import Example, Message  # noqa: E402

HERE = Path(__file__).resolve().parent
# Folders and files whose tests need a model, jobs, several processes or many seconds. What takes longest
# comes first, so that no process is left alone with it at the end. A single slow test is marked in its file.
SLOW = (
    *("test_notebook.py", "test_sharded_weights.py", "test_command_line.py", "test_processes.py"),
    *("reliability", "test_experiments.py", "test_extending.py"),
    *("launch", "test_experiment.py", "estimate", "test_api.py", "selection/test_selectors.py", "gradients"),
    *("test_changed_files.py", "selection/test_distributed.py", "benchmarks", "selection/test_streaming.py"),
    *("selection/atoms/test_fused.py", "model", "training", "evaluation", "test_wheel.py"),
    *("test_security.py", "test_search.py", "test_sweeps.py", "test_validation.py", "test_stages.py"),
    *("test_tracking.py", "test_gpu.py"),
    *("test_config_fuzz.py", "data/test_generation.py", "baselines/test_model_passes.py"),
    *("baselines/test_sentence_knn.py", "housekeeping"),
    *("export/test_product.py", "export/test_merge.py", "export/test_trainers.py"),
)
MODELS = {"tiny", "tiny_config"}  # fixtures that bring a model


def pytest_xdist_auto_num_workers(config):
    """Return one process more than there are cores for the slow tests, which wait for others' processes now
    and then and would leave a core idle; None, for xdist's own number, without them."""
    if config.option.markexpr or "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Until all tests are imported a collection of garbage would find nothing, for an eighth of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items):
    """Mark the slow tests, for `-m "not slow"`, and bring them to the front."""
    if missing := [name for name in SLOW if not (HERE / name).exists()]:
        raise pytest.UsageError(f"tests/conftest.py calls slow what is not there: {missing}")
    of_file = {path: _place(path) for path in {item.path for item in items}}
    for item in items:
        if of_file[item.path] < len(SLOW) or MODELS & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: of_file[item.path])


def _place(path: Path) -> int:
    """Return which entry of SLOW a file belongs to, or their number if to none."""
    return next((i for i, name in enumerate(SLOW) if (HERE / name) in (path, *path.parents)), len(SLOW))


def _freeze():
    """Have later collections pass over what is there now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_stays():
    """Collections, of which benchmarks and Accelerate ask for many, pass over what earlier modules left."""
    _freeze()


@pytest.fixture(scope="module")
def _tests_before():
    """Count the tests of a module."""
    return itertools.count()


@pytest.fixture(autouse=True)
def _what_the_first_test_imports_stays(_tests_before):
    """Every training begins with a collection: half a second, with all that the first one has imported."""
    yield
    if next(_tests_before) == 0:
        _freeze()


@pytest.fixture(scope="session", autouse=True)
def _a_configuration_file_is_parsed_once():
    """Hydra parses the same files anew for each of thousands of jobs; here equal text is parsed once."""
    from hydra._internal.core_plugins import file_config_source
    from omegaconf import OmegaConf

    parsed: dict[str, bytes] = {}

    class Once:
        @staticmethod
        def load(file):
            text = file.read()
            if text not in parsed:
                file.seek(0)
                parsed[text] = pickle.dumps(OmegaConf.load(file))
            return pickle.loads(parsed[text])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(file_config_source, "OmegaConf", Once)
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_module_silences_the_next():
    """What turns logging off for its process would hide the warnings that later tests look for."""
    yield
    assert logging.root.manager.disable == logging.NOTSET


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
    import torch  # here, as the process that only hands out the tests reads this file, too

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
