"""Two processes that share a model's weights (FSDP2) do what one process does with all of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import forked
import pytest
import sharded_gradients
import torch
from process_differences import differences
from test_experiment import run as run_here
from test_processes import JOB, run

from gtp_exp.errors import UserError
from gtp_exp.experiment import _check_shareable
from gtp_exp.launch.launcher import Launch
from gtp_exp.launch.sharding import Sharding, read_sharding
from gtp_exp.model.loading import ModelConfig
from gtp_exp.model.lora import LoRA
from gtp_exp.model.quantized import Quantization
from gtp_exp.records.record import State, write_record
from gtp_exp.selection.base import Need

FSDP = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
"""
# Of the sums' order alone: a gradient is a row's own, and a step of training adds up over processes.
ALLOWED = {
    "warm-up, weights": 1e-4,
    "warm-up, Adam's moments": 1e-4,
    "gradients of the pool": 1e-5,
    "gradients of the target": 1e-5,
    "weights of the selection": 1e-4,
    "fine-tuned adapter": 1e-4,
    "metrics": 1e-4,
}


@pytest.mark.parametrize(
    ("family", "reshard", "dtype"),
    [
        ("llama_gqa_tied_bias", True, "float32"),
        ("gemma2", False, "float32"),
        ("llama_gqa_tied_bias", True, "bfloat16"),  # trains, too
    ],
)
def test_every_engine_gives_each_process_the_gradients_of_its_own_rows(family, reshard, dtype, tmp_path):
    file = tmp_path / "errors.json"
    forked.connected(2, sharded_gradients.main, family, reshard, getattr(torch, dtype), file)
    errors = json.loads(file.read_text())
    parts = ["autograd", "hooks", "packed"] + ["trained"] * (dtype == "bfloat16")
    assert set(errors) == set(parts)
    assert max(errors.values()) < 1e-5, errors


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The job by this process."""
    folder = tmp_path_factory.mktemp("one")
    record = run_here(folder, *JOB, "launch.num_processes=1")
    write_record(replace(record, state=State.COMPLETE), folder / "run")
    return folder


@pytest.mark.parametrize("kind", ["whole", "shared"])
def test_the_whole_job_is_the_same(one, tmp_path, kind):
    (tmp_path / "accelerate.yaml").write_text(FSDP)
    done = run(tmp_path, 2, *["launch.config_file=accelerate.yaml"] * (kind == "shared"))
    assert done.returncode == 0, done.stderr
    told = "of each layer's weights, this process keeps 1 part in 2"
    assert (told in (tmp_path / "run" / "worker.log").read_text()) == (kind == "shared")
    found = differences(one, tmp_path)
    print("\n" + "\n".join(f"{kind}: {stage}: {value:.1e}" for stage, value in found.items()))
    assert found.keys() == ALLOWED.keys()
    assert {stage: v for stage, v in found.items() if not v <= ALLOWED[stage]} == {}


def test_a_job_that_was_stopped_among_its_gradients_goes_on(one, tmp_path):
    """One checkpoint's pool gradients are there; both processes have to see the same ones missing."""
    (tmp_path / "accelerate.yaml").write_text(FSDP)
    for stage in ("warmup", "evaluation", "gradients"):
        shutil.copytree(one / "cache" / stage, tmp_path / "cache" / stage)
    for store in (tmp_path / "cache" / "gradients").iterdir():
        if (store / "store").is_dir():
            (store / "manifest.json").unlink()
            (store / "store" / "store.json").unlink()
            shutil.rmtree(store / "store" / "checkpoint-01")
            store.rename(store.with_name(store.name + ".part"))
    done = run(tmp_path, 2, "launch.config_file=accelerate.yaml", "until=selection")
    assert done.returncode == 0, done.stderr


def settings(**options):
    return {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, **options}}


def test_what_is_read_of_the_configuration():
    assert read_sharding({}, "f") is None and read_sharding({"distributed_type": "MULTI_GPU"}, "f") is None
    assert read_sharding(settings(), "f") == Sharding(reshard_after_forward=True)
    assert read_sharding(settings(fsdp_reshard_after_forward="false"), "f") == Sharding(False)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}, "DeepSpeed.*FSDP"),
        ({"distributed_type": "MEGATRON_LM"}, "MEGATRON_LM is not supported"),
        ({"distributed_type": "MULTI_GPU", "parallelism_config": {"tp_size": 2}}, "parallelism_config"),
        (settings(fsdp_version=1), "set fsdp_version: 2"),
        (settings(fsdp_version="two"), "set fsdp_version: 2"),
        ({"distributed_type": "FSDP"}, "set fsdp_version: 2"),
        (settings(fsdp_offload_params=True), "set fsdp_offload_params: false"),
        (settings(fsdp_activation_checkpointing="true"), "set fsdp_activation_checkpointing: false"),
        (settings(fsdp_auto_wrap_policy="SIZE_BASED_WRAP"), "set TRANSFORMER_BASED_WRAP"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(content, named):
    with pytest.raises(UserError, match=f"launch.config_file=f.*{named}"):
        read_sharding(content, "f")


def test_deepspeed_is_refused_in_one_line_before_anything_is_started(tmp_path):
    (tmp_path / "zero3.yaml").write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n")
    done = run(tmp_path, 2, "launch.config_file=zero3.yaml")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "launch.config_file=zero3.yaml asks for DeepSpeed" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.glob("cache/*/*"))


def test_processes_that_the_file_alone_asks_for_are_not_left_out_without_a_word(tmp_path):
    file = tmp_path / "fsdp.yaml"
    file.write_text(f"{FSDP}\nnum_processes: 4\n")
    with pytest.raises(UserError, match="num_processes: 4, .* is 1; give launch.num_processes=4"):
        Launch(config_file=str(file))
    assert Launch(num_processes=4, config_file=str(file)).sharding == Sharding()


def test_models_and_selectors_that_need_whole_weights_are_refused(tmp_path):
    file = tmp_path / "fsdp.yaml"
    file.write_text(FSDP)
    launch, lora = Launch(num_processes=2, config_file=str(file)), ModelConfig(lora=LoRA())
    assert launch.sharding == Sharding() and Launch(config_file=str(file)).sharding is None
    plain, asking = (SimpleNamespace(needs=needs) for needs in (set(), {Need.MODEL}))
    _check_shareable(launch, plain, lora, None)
    with pytest.raises(UserError, match="model.lora=null trains them"):
        _check_shareable(launch, plain, lora, replace(lora, lora=None))
    with pytest.raises(UserError, match="model.quantization=nf4 stores them"):
        _check_shareable(launch, plain, replace(lora, quantization=Quantization.NF4))
    with pytest.raises(UserError, match="runs the model in one process"):
        _check_shareable(launch, asking, lora, None)
