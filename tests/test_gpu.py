"""A whole job on a GPU: what a CPU gives, and the same bytes every time."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_processes import entry, results, run

from gtp_exp.gradients.store import GradientStore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def job(folder, device, precision):
    done = run(folder, 1, f"launch.device={device}", f"model.precision={precision}")
    assert done.returncode == 0, done.stderr
    return results(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same job on a CPU and on a GPU, which is given the CPU's warm-up: rounding grows."""
    cpu, gpu = (tmp_path_factory.mktemp(name) for name in ("cpu", "gpu"))
    one = job(cpu, "cpu", "fp32")
    shutil.copytree(cpu / "cache" / "warmup", gpu / "cache" / "warmup")
    two = job(gpu, "cuda", "fp32")
    assert two["stages"]["warmup"]["cached"] and two["model"]["device"] == "cuda"
    return (cpu, one), (gpu, two)


@pytest.mark.parametrize("stage", ["gradients: pool", "gradients: target"])
def test_gradients_are_those_of_a_cpu(pair, stage):
    one, two = (GradientStore.open(entry(folder, stage) / "store") for folder, _ in pair)
    for t in range(2):
        for direction in one.directions:
            left, right = (s.features(t, direction).rows(torch.arange(one.n)).float() for s in (one, two))
            error = (left - right).norm(dim=1) / left.norm(dim=1)
            assert float(error.max()) <= 2e-3, (t, direction)


def test_the_choice_is_that_of_a_cpu(pair):
    one, two = (load_file(entry(folder, "selection") / "selection.safetensors") for folder, _ in pair)
    assert torch.equal(one["indices"], two["indices"])
    torch.testing.assert_close(one["weights"], two["weights"], rtol=1e-2, atol=1e-3)


def test_metrics_are_those_of_a_cpu(pair):
    (_, one), (_, two) = pair
    for name in ("metrics", "untuned"):
        for task, values in one[name].items():
            assert two[name][task].pop("headline") == values.pop("headline")
            assert two[name][task] == pytest.approx(values, rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_job_gives_the_same_bytes_again(tmp_path, precision):
    again = tmp_path / "again"
    again.mkdir()
    for folder in (tmp_path, again):
        job(folder, "cuda", precision)
    for stage, pattern in (
        ("warmup", "*/*.safetensors"),
        ("gradients: pool", "store/**/*.safetensors"),
        ("selection", "*.safetensors"),
        ("finetune", "model/*.safetensors"),
    ):
        left, right = (sorted(entry(folder, stage).glob(pattern)) for folder in (tmp_path, again))
        assert left and len(left) == len(right), stage
        for a, b in zip(left, right, strict=True):
            assert a.read_bytes() == b.read_bytes(), (stage, a.name)
