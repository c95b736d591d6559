"""Compare, before any work, what a test task lets the model write with the model's length and the right
answers'."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.errors import UserError

# The names under which a task may say how many tokens, in the order in which lm-eval heeds them
# (normalize_gen_kwargs, whose import takes seconds); and how many a Hugging Face model may write by default.
_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT = 256

log = logging.getLogger(__name__)


def check_room_to_generate(task: EvalTask, max_length: int) -> None:
    """Raise UserError where the tokens that a task lets the model write leave none of max_length to the
    question.

    lm-eval would end there in an assertion, when the model is trained.
    """
    longest = max_generated_tokens(task)
    if longest is not None and longest >= max_length:
        raise UserError(
            f"the task '{task.name}' lets the model write {longest} tokens, which leaves none of "
            f"model.max_length={max_length} to the question; raise model.max_length above {longest} by as "
            "much as the longest question takes, or test on another task"
        )


def warn_of_long_answers(task: EvalTask, n_tokens: Sequence[int]) -> None:
    """Warn where the model may write fewer tokens than right answers have: none that it writes equals these.

    n_tokens: of the right answer of each row.
    """
    most = max_generated_tokens(task)
    if most is not None and (long := sum(n > most for n in n_tokens)):
        log.warning(
            "%s: %d of %d right answers are longer than the %d tokens that the model may write, the longest "
            "has %d; raise benchmark.max_new_tokens, or the task's max_gen_toks",
            *(task.name, long, len(n_tokens), most, max(n_tokens)),
        )


def max_generated_tokens(task: EvalTask) -> int | None:
    """Return how many tokens the model may write for an answer; None for a task where it writes nothing, and
    for a group of tasks."""
    config = None if task.metric == HELD_OUT_LOSS else _whole_config(task)
    if config is None or config.get("output_type", "generate_until") != "generate_until":
        return None
    settings = config.get("generation_kwargs") or {}
    return next((int(settings[name]) for name in _NAMES if settings.get(name) is not None), _DEFAULT)


def _whole_config(task: EvalTask) -> Mapping[str, Any] | None:
    """Return the task's settings, with those of the files that it includes or that lm-eval bundles; None
    where these are not of one task."""
    included = task.config.get("include")
    if included is None and task.docs is not None:
        return task.config
    import lm_eval
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    if included is None:
        entry = bundled_tasks().task_index.get(task.name)
        if entry is None or entry.kind is not Kind.TASK or entry.yaml_path is None:
            return None
        included = entry.yaml_path
    whole: dict[str, Any] = {}
    for path in included if isinstance(included, list) else [included]:
        source = Path(lm_eval.__file__).parent.parent / path  # an absolute path stays as it is
        if not source.is_file():
            return None  # the evaluation will say so
        whole |= load_yaml(source, resolve_func=False)
    return {**whole, **task.config}


@functools.cache
def bundled_tasks() -> Any:
    """Return lm-eval's manager of its own tasks, made once: lm-eval reads 14,000 files for it, in 7 s."""
    from lm_eval.tasks import TaskManager

    return TaskManager()
