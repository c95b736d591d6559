"""What the performance script compares: every method computes the same thing, and the report says what was
measured. On a tiny model, with one round; nothing is asserted about time.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from tqdm import tqdm

from gtp_benchmarks.performance import gradients
from gtp_benchmarks.performance.gradient_methods import (
    SKETCH,
    WHOLE,
    Ours,
    PlainStep,
    Weights,
    half_of,
    random_moments,
    zipf_examples,
)
from gtp_benchmarks.performance.gradient_peers import BergsonCollector, LessProcedure, missing
from gtp_benchmarks.performance.gradients import GradientBench, main, memory
from gtp_benchmarks.performance.measuring import Figure, Timing, interleaved, speed_ratio, table
from gtp_exp.data.batching import length_sorted_batches
from gtp_exp.data.examples import IGNORE
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.model.device import Precision
from gtp_exp.model.loss import Reduction, reference_gradients


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return Weights("tiny", None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(weights):
    return weights.load(Precision.FP32, r=8)


@pytest.fixture(scope="module")
def examples(model):
    return zipf_examples(16, model.config.vocab_size)


@pytest.fixture(scope="module")
def ours(model, examples):
    return Ours.choose(model, examples)


def one_by_one(model, parameters, examples):
    """[n, p] by autograd at batch size 1."""
    rows = [reference_gradients(model, parameters, e, Reduction.MEAN) for e in examples]
    return torch.stack([torch.cat([row[name].flatten() for name in parameters]) for row in rows])


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def test_examples_are_those_described():
    examples = zipf_examples(64, 49152)
    assert examples == zipf_examples(64, 49152)
    lengths = [e.n_tokens for e in examples]
    assert min(lengths) >= 40 and max(lengths) <= 256
    assert abs(sum(lengths) / 64 - 126) < 1
    for example in examples:
        assert all(16 <= token < 49152 for token in example.input_ids)
        assert example.labels.count(IGNORE) == example.n_tokens // 2
        assert all(b in (IGNORE, a) for a, b in zip(example.input_ids, example.labels, strict=True))


def test_half_of_the_examples_is_padded_as_the_whole():
    examples = zipf_examples(64, 49152)
    half = half_of(examples)
    assert len(half) == 32 and set(half) <= set(examples)

    def padding(rows):
        lengths = [e.n_tokens for e in rows]
        padded = [len(b) * max(lengths[i] for i in b) for b in length_sorted_batches(lengths, 8)]
        return 1 - sum(lengths) / sum(padded)

    assert abs(padding(half) - padding(examples)) < 0.01


def test_ours_is_the_packed_engine_and_exact(model, examples, ours):
    assert ours.choice.engine is Engine.PACKED
    expected = one_by_one(model, ours.parameters, examples)
    assert close(ours.whole()(examples), expected)
    assert close(ours.with_kernel(LinearKernel.DEFAULT).whole()(examples), expected)
    by_name = ours.by_name(examples)
    found = torch.stack([torch.cat([g.flatten() for g in _ordered(by_name[e.id], ours)]) for e in examples])
    assert close(found, expected)


def _ordered(gradients, ours):
    return [gradients[name] for name in ours.parameters]


def test_no_gradient_is_zero_from_the_start(model, examples, ours):
    """B = 0, as training begins, would hide the gradient of A."""
    found = ours.by_name(examples[:1])[examples[0].id]
    assert all(g.abs().max() > 0 for g in found.values())


def test_the_plain_step_has_the_mean_of_our_gradients(model, examples, ours):
    batch = examples[:8]
    PlainStep(model, autocast=False)(batch)
    plain = torch.cat([p.grad.flatten() for p in ours.parameters.values()])
    model.zero_grad()
    tokens = torch.tensor([float(e.n_completion_tokens) for e in batch])
    mean = (tokens / tokens.sum()) @ ours.whole()(batch)
    assert close(plain, mean)


def test_autocast_computes_in_bf16(weights, examples):
    model = weights.load(Precision.FP32, r=8)
    seen = set()
    layer = next(m for name, m in model.named_modules() if name.endswith("q_proj.base_layer"))
    layer.register_forward_hook(lambda _, args, output: seen.add(output.dtype))
    PlainStep(model, autocast=True)(examples[:2])
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_less_and_ours_give_the_same_directions(model, examples, ours):
    moments = random_moments(ours.parameters)
    theirs = LessProcedure(model, moments).gradients(examples[:5])
    assert all(p.grad is None for p in model.parameters())
    assert close(ours.directions(moments, WHOLE)(examples[:5]), theirs)
    assert ours.directions(moments)(examples[:5]).shape == (5, SKETCH.dim)


def test_part_of_less_projection_is_that_part_of_it(model, ours):
    """So its time may be scaled up."""
    if reason := missing("trak"):
        pytest.skip(reason)
    less = LessProcedure(model, random_moments(ours.parameters))
    gradients = torch.randn(20, sum(p.numel() for p in ours.parameters.values()))
    whole, part = (less.project(gradients, less.projector(dim)) for dim in (1024, 256))
    assert whole.shape == (20, 1024)
    assert torch.equal(whole[:, :256], part)


def test_bergson_and_ours_give_the_same_gradients(weights, examples, ours):
    if reason := missing("bergson"):
        pytest.skip(reason)
    rows = BergsonCollector(weights.load(Precision.FP32, r=8), token_budget=512)(examples)
    found = torch.stack([torch.cat([row[_in_bergson(n)] for n in ours.parameters]) for row in rows])
    assert close(found, ours.whole()(examples))


def _in_bergson(name):
    return name.removeprefix("base_model.").removesuffix(".weight")


def test_the_report_holds_every_part(weights, tmp_path, capsys):
    """The parts that run in this process; peers that are not installed are named, with the remedy."""
    parts = ["exact", "fp32", "bf16", "sketch", "less", "bergson"]
    arguments = ["--model", "tiny", "--examples", "16", "--repeats", "1", "--output", str(tmp_path)]
    assert main([*arguments, "--cache", str(weights.cache), "--parts", *parts]) == 0
    report = json.loads((tmp_path / "gradients.json").read_text())
    assert list(report["sections"]) == parts
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert " ".join(arguments) in report["command"]
    assert max(report["sections"]["exact"]["relative_error"]["fp32"]) <= 5e-5
    assert all(0 < error < 2 / SKETCH.dim**0.5 for error in report["sections"]["exact"]["cosine_error"])
    assert report["sections"]["fp32"]["choice"]["engine"] == "packed"
    repeats = report["repeats"]
    assert repeats["bf16"].keys() == {"ours", "plain, autocast", "plain, all bf16"}
    assert repeats["sketch"].keys() == {"with, r = 8", "without, r = 8", "with, r = 64", "without, r = 64"}
    for methods in repeats.values():
        assert all(len(timing["seconds"]) == 1 and timing["seconds"][0] > 0 for timing in methods.values())
    bars = {figure["bar"] for figure in report["figures"]}
    assert {1.15, 1.5, 0.97, 0.95} <= bars
    text = (tmp_path / "gradients.md").read_text()
    assert all(f"| {figure['what']} | " in text for figure in report["figures"])
    assert text in capsys.readouterr().out
    for package, peer in (("trak", "LESS's procedure"), ("bergson", "bergson")):
        told = any(f"{peer} was not measured" in note and "pip install" in note for note in report["notes"])
        assert told == (missing(package) is not None)


def small(weights, folder, *more):
    arguments = ["--model", "tiny", "--examples", "16", "--repeats", "1", "--output", str(folder)]
    return [*arguments, "--cache", str(weights.cache), *more]


def test_what_the_processor_is_not_fast_in_is_left_out_with_a_line(weights, tmp_path, capsys):
    parts = ["exact", "fp32", "bf16", "sketch", "less"]
    assert main(small(weights, tmp_path, "--precisions", "fp32", "--parts", *parts)) == 0
    report = json.loads((tmp_path / "gradients.json").read_text())
    assert list(report["sections"]) == parts and set(report["repeats"]["fp32"]) >= {"plain", "ours"}
    assert not any(report["repeats"][part] for part in ("bf16", "sketch", "less"))
    assert set(report["sections"]["exact"]["relative_error"]) == {"fp32"}
    told = capsys.readouterr().err
    for part in ("bf16", "sketch", "less"):
        assert f"{part} was not measured: this processor has no fast bf16" in told


def test_every_part_says_how_long_it_takes(weights, tmp_path, capsys):
    assert main(small(weights, tmp_path, "--precisions", "fp32", "--parts", "fp32", "sketch_fp32")) == 0
    told = capsys.readouterr().err
    for section in ("fp32", "sketch, fp32, r = 8", "sketch, fp32, r = 64"):
        assert re.search(rf"(^|\r){section}: 1 x \d runs, about \d+ (s|minutes)$", told, re.M), section


def test_what_is_stopped_keeps_the_parts_that_are_done(weights, tmp_path, monkeypatch, capsys):
    def stopped(bench):
        raise KeyboardInterrupt

    monkeypatch.setitem(gradients.SECTIONS, gradients.Part.BERGSON, (stopped, lambda repeats: 1))
    assert main(small(weights, tmp_path, "--parts", "fp32", "bergson")) == 130
    report = json.loads((tmp_path / "gradients.json").read_text())
    assert list(report["sections"]) == ["fp32"] and report["figures"]
    assert "interrupted; 1 of 2 parts are written" in capsys.readouterr().err


def test_memory_is_measured_in_processes_of_their_own(weights, examples):
    with tqdm(disable=True) as progress:
        section = memory(GradientBench(weights, examples, 1, progress), [Precision.FP32])
    peaks = section.details["peak_bytes"]
    assert peaks.keys() == {"ours, fp32", "plain, fp32"}
    assert min(peaks.values()) > 1e8  # torch alone takes more
    (figure,) = section.figures
    assert figure.value == peaks["ours, fp32"] / peaks["plain, fp32"]
    assert figure.at_most and figure.bar == 1.5


def test_a_model_that_is_not_there_is_a_user_error(tmp_path, capsys):
    missing_model = str(tmp_path / "nothing")
    assert main(["--model-path", missing_model, "--parts", "exact", "--output", str(tmp_path / "out")]) == 2
    assert missing_model in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [["--examples", "3"], ["--repeats", "0"], ["--parts", "speed"]])
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as refused:
        main(wrong)
    assert refused.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_every_round_begins_with_another_method():
    order = []
    methods = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = interleaved(methods, 4, amount=2, started=lambda name: None, finished=lambda: None)
    assert order == list("abc" + "bca" + "cab" + "abc")
    assert list(timings) == list("abc")
    assert all(len(t.seconds) == 4 and t.amount == 2 for t in timings.values())


def test_ratios_are_of_medians_and_of_rates():
    ours, theirs = Timing((1.0, 2.0, 90.0), amount=6), Timing((4.0, 4.0, 5.0), amount=3)
    assert (ours.median, ours.rate) == (2.0, 3.0)
    figure = speed_ratio("a / b", ours, theirs, unit="rows/s", bar=4.0)
    assert figure.value == pytest.approx(4.0)
    assert figure.absolute == "3 : 0.75 rows/s; rounds 0.111 to 8"


def test_a_bar_is_met_on_the_right_side():
    above = Figure("speed", 0.93, "", bar=0.93)
    below = Figure("speed", 0.9299, "", bar=0.93)
    heavy, light = (Figure("memory", value, "", bar=1.5, at_most=True) for value in (1.6, 1.5))
    assert [f.met for f in (above, below, heavy, light)] == [True, False, False, True]
    assert Figure("only reported", 2.0, "").met is None
    lines = table([above, below, heavy]).splitlines()
    assert [line.split("|")[4].strip() for line in lines[2:]] == ["yes", "**no**", "**no**"]
