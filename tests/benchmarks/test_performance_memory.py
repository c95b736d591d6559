"""What the scripts that measure memory say: bytes that can be counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from gtp_benchmarks.performance.long_rows import row_of
from gtp_benchmarks.performance.measuring import MMAP_FROM
from gtp_benchmarks.performance.model_memory import (
    HEAD,
    PASSES,
    _parser,
    frozen_bytes,
    line_of,
    load,
    make_pass,
    write_model,
)

CPU, MIB = torch.device("cpu"), 1 << 20
VOCABULARY, INSIDE = 300, HEAD * 11 // 4
# One layer of one head: queries, keys, values and what is put out; three in the MLP.
LINEAR = 4 * HEAD * HEAD + 3 * HEAD * INSIDE
OTHERS = 2 * VOCABULARY * HEAD + 3 * HEAD  # embeddings, head and norms
ROTARY = 2 * 4 * HEAD // 2  # bytes of the frequencies, which stay in float32, in two buffers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of one layer."""
    to = tmp_path_factory.mktemp("llama")
    write_model(
        "llama",
        _parser().parse_args(["--hidden", str(HEAD), "--layers", "1", "--vocabulary", str(VOCABULARY)]),
        to,
    )
    return to


PEAKS = """
import json
import torch
from gtp_benchmarks.performance.measuring import forget_peak, peak_above

def run():
    for _ in range(3):
        torch.ones(32 * (1 << 20) // 4)

def run_and_forget():
    run()
    forget_peak(torch.device("cpu"))
    torch.ones(8 * (1 << 20) // 4)

print(json.dumps([peak_above(one, torch.device("cpu")) for one in (run, run_and_forget)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_what_a_function_holds_at_a_time():
    """In a process of its own, as the scripts measure: what others freed would hide an allocation."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **MMAP_FROM},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    whole, last = json.loads(done.stdout)
    assert 31 * MIB < whole < 40 * MIB
    assert 7 * MIB < last < 16 * MIB


@pytest.mark.parametrize(("stored", "bytes_"), [("fp32", 4), ("bf16", 2)])
def test_weights_are_counted_once_and_without_the_lora(folder, stored, bytes_):
    model = load(folder, stored, 4, CPU).model
    assert frozen_bytes(model) == bytes_ * (LINEAR + OTHERS) + ROTARY


def test_weights_in_four_bits_are_counted_with_their_scales(folder):
    """A scale in a byte for 64 values, and for 256 of these a scale of their own in four."""
    pytest.importorskip("bitsandbytes")
    found = frozen_bytes(load(folder, "nf4", 4, CPU).model)
    least = LINEAR // 2 + LINEAR // 64 + 2 * OTHERS + ROTARY
    assert least < found < least + 7 * 2048  # of each of the seven matrices, the maps of values


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_runs(folder, tmp_path, name):
    if name in ("adamw_8bit", "both"):
        pytest.importorskip("bitsandbytes")
    make_pass(name, load(folder, "fp32", 4, CPU), tmp_path)([row_of(16)] * 2)


def test_a_line_shares_by_the_step_and_by_the_first_line():
    first = {"weights": 400 * MIB, "step": 100 * MIB, "all": 500 * MIB}
    sizes = {"weights": 100 * MIB, "gradients": 60 * MIB, "step": 150 * MIB, "all": 250 * MIB}
    line = line_of("llama", "nf4", ["gradients", "step", "both"], sizes, first)
    assert line == "| llama | nf4 | 100 (0.25) | 60 (0.40) | 150 | - | 250 (0.50) |"
