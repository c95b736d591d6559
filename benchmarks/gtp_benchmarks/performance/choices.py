"""What multiple-choice tests cost: one pass over a prompt for all of its choices, beside lm-eval's own way.

    python -m gtp_benchmarks.performance.choices [--rows 32] [--rounds 3] [--file TEST.jsonl]

Counts the tokens that the model reads, padding included, against those of the prompts and answers without
repetition, and takes the time of both ways in turn. Questions are the built-in skills', or those of a file in
the form of `benchmark=jsonl_choice`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models import huggingface

from gtp_benchmarks.jsonl_choice import JsonlChoice
from gtp_benchmarks.performance.measuring import Figure, interleaved, machine, speed_ratio, write_report
from gtp_benchmarks.skills import SkillsBenchmark
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Message
from gtp_exp.data.tokenization import encode
from gtp_exp.evaluation.shared_prompts import Request, score_answers
from gtp_exp.model.device import Precision
from gtp_exp.model.loading import Model, ModelConfig, ModelSource, prepare

BATCH = 16  # as conf/config.yaml has it


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both ways, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=32, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", help="a test file in the form of benchmark=jsonl_choice")
    parser.add_argument("--model", choices=["smollm2", "tiny"], default="smollm2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    setup = machine(options.threads)
    config = ModelConfig(precision=Precision.FP32)
    if options.model == "tiny":
        config = ModelConfig(ModelSource.TINY, "tiny", precision=Precision.FP32, max_length=512)
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(config, Path(folder), torch.device("cpu"))
        asked = requests(tasks(options.file, options.rows), model)
        figures, timings, note = compare(model, asked, options.rounds)
    command = "python -m gtp_benchmarks.performance.choices " + " ".join(argv or sys.argv[1:])
    print(
        write_report(
            options.output,
            "choices",
            command=command.strip(),
            setup=setup,
            figures=figures,
            notes=[note],
            repeats={"choices": timings},
            details={},
        )
    )
    return 0


def tasks(file: str | None, rows: int) -> tuple[EvalTask, ...]:
    """Return multiple-choice tasks of at most so many questions each."""
    if file is not None:
        return JsonlChoice(file, file, test_rows=rows).tasks()
    skills = ["antonym", "category", "longest_word"]  # of answers with several tokens, most of them
    return SkillsBenchmark(skills, test_rows=rows, generation_skills=[], generation_rows=0).tasks()


def requests(tests: Sequence[EvalTask], model: Model) -> list[Request]:
    """Return every choice with its prompt as token ids."""
    examples = [
        Example("", (Message("user", doc["query"]), Message("assistant", choice)))
        for test in tests
        for doc in test.docs or ()
        for choice in doc["choices"]
    ]
    asked: list[Request] = []
    for row in encode(examples, model.tokenizer):
        assert not isinstance(row, str), row
        first, stop = row.answers[0]
        if stop <= model.config.max_length:
            asked.append((row.input_ids[:first], row.input_ids[first:stop]))
    return asked


def compare(model: Model, asked: Sequence[Request], rounds: int) -> tuple[list[Figure], dict[str, Any], str]:
    """Return the figures, the times, and a line on what was asked."""
    loaded = model.load()
    lm: Any = huggingface.HFLM
    lm = lm(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=BATCH,
        max_length=loaded.max_length,
        softmax_dtype="float32",
    )
    pairs = [(("", ""), list(prompt), list(answer)) for prompt, answer in asked]
    methods = {
        "ours": lambda: score_answers(loaded.model, asked, BATCH),
        "lm-eval": lambda: lm._loglikelihood_tokens(pairs, disable_tqdm=True),
    }
    least = sum(map(len, {prompt for prompt, _ in asked})) + sum(len(answer) for _, answer in asked)
    tokens, scores = {}, {}
    for name, method in methods.items():  # the first call pays what first calls cost
        with _Counted(loaded.model) as counted:
            scores[name] = method()
        tokens[name] = counted.tokens
    apart = max(abs(a[0] - b[0]) for a, b in zip(scores["ours"], scores["lm-eval"], strict=True))
    timings = interleaved(
        methods, rounds, amount=len(asked), started=lambda name: None, finished=lambda: None
    )
    figures = [
        Figure(
            f"tokens {who} / tokens of prompts and answers without repetition",
            tokens[who] / least,
            f"{tokens[who]:,} : {least:,} tokens",
            1.3 if who == "ours" else None,
            at_most=True,
        )
        for who in methods
    ]
    figures.append(
        speed_ratio("ours / lm-eval's own way", timings["ours"], timings["lm-eval"], unit="choices/s")
    )
    figures.append(Figure("largest difference of a log-likelihood, nats", apart, "fp32", 1e-4, at_most=True))
    n = len({prompt for prompt, _ in asked})
    return figures, timings, f"{n} questions, {len(asked)} choices, batches of {BATCH}"


class _Counted:
    """Counts the tokens that a model reads, padding included."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        self._model, self._hook = model, None

    def __enter__(self) -> _Counted:
        self._hook = self._model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._hook is not None
        self._hook.remove()

    def _count(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens += (args[0] if args else kwargs["input_ids"]).numel()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of lm-eval, on a model that it is given
    sys.exit(main())
