"""Benchmarks that lm-eval bundles (MMLU, BBH, TydiQA, ...), read through lm-eval's own task objects.

The target rows of a subtask are its first few-shot examples, as in LESS (Xia et al. 2024). The test rows are
those that lm-eval would evaluate. They are handed on as data, with the bundled YAML included by its path: the
data set is read once, and evaluating 57 subtasks does not index lm-eval's 13,000 tasks 57 times.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional

from gtp_exp.data.benchmark import Answers, EvalTask, Mean
from gtp_exp.data.examples import Example, Message
from gtp_exp.data.local_folder import cache_of_content, content_digest
from gtp_exp.errors import UserError, first_line
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

_SUITE = "gtp_exp_suite"  # the group that gathers the wanted tasks; not the name of a bundled one
_FEWSHOT_OVERRIDES = (
    "doc_to_text",
    "doc_to_choice",
    "doc_to_target",
    "gen_prefix",
    "target_delimiter",
    "fewshot_delimiter",
)


@dataclass(frozen=True)
class LmEvalSuite:
    """Describes a suite of tasks that lm-eval bundles. Row counts are per subtask, that is, per single task
    of lm-eval."""

    names: list[str] = field(default_factory=lambda: ["mmlu"])  # tasks, groups or tags of lm-eval
    folder: Optional[str] = "mmlu/default"
    dataset_path: Optional[str] = None
    target_rows: int = 5
    test_rows: Optional[int] = None
    num_fewshot: int = 5  # examples in the prompt of a test row
    chat: bool = False
    metric: str = "acc,none"  # lm-eval's key: metric,filter
    mean: Mean = Mean.ROWS  # of the tasks, in tables and for a sweeper
    answers: Answers = Answers.CHOICES  # REASONING where an answer is written after a chain of thought

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("benchmark.names is empty; name tasks of lm-eval, such as [mmlu_anatomy]")
        if self.target_rows < 1:
            raise UserError(
                f"benchmark.target_rows={self.target_rows} gives the selector no target; use 5 or so"
            )
        if self.test_rows is not None and self.test_rows < 1:
            raise UserError(
                f"benchmark.test_rows={self.test_rows} leaves nothing to test on; null tests on all rows"
            )
        if self.num_fewshot < 0:
            raise UserError(f"benchmark.num_fewshot={self.num_fewshot} must be 0 or more")
        if "," not in self.metric:
            raise UserError(
                f"benchmark.metric='{self.metric}' must be metric,filter as lm-eval writes it: acc,none"
            )

    def target(self) -> tuple[Example, ...]:
        """Return the rows that a selector may see."""
        return tuple(
            _example(f"{name}-target-{i}", task, doc, name)
            for name, task in self._load().items()
            for i, doc in enumerate(_shots(name, task, self.target_rows, "benchmark.target_rows"))
        )

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return the test tasks."""
        return tuple(self._eval_task(name, task) for name, task in self._load().items())

    def _load(self) -> Mapping[str, Any]:
        if self.dataset_path is None:
            return _load(tuple(self.names), self.folder)
        copy = _local_copy(self.dataset_path)
        content = content_digest(copy)  # the folder may have other files than when it was read before
        with cache_of_content(content):
            return _load(tuple(self.names), self.folder, str(copy), self.dataset_path, content)

    def _eval_task(self, name: str, task: Any) -> EvalTask:
        import lm_eval

        rows = task.eval_docs
        docs = [dict(rows[i]) for i in range(min(len(rows), self.test_rows or len(rows)))]
        shots = _shots(name, task, self.num_fewshot, "benchmark.num_fewshot")
        config: dict[str, Any] = {
            "include": _portable(task.config.metadata["config_source"]),
            "dataset_name": None,  # the rows come from a file now, processed and split
            "process_docs": None,
            "training_split": None,
            "validation_split": None,
            "fewshot_split": None,
            "num_fewshot": self.num_fewshot,
            # The included file may change under the same path: its version belongs to what is evaluated.
            "metadata": {"version": task.VERSION, "lm_eval": lm_eval.__version__},
        }
        if not config["include"].startswith("lm_eval/"):  # a task of the user's own, with its code beside it
            config["metadata"]["files"] = content_digest(Path(config["include"]).parent)
        if not _has_fewshot_in_yaml(task):
            config["fewshot_config"] = _fewshot_config(name, task)
        return EvalTask(
            name=name,
            metric=self.metric,
            config=config,
            docs=tuple(docs),
            fewshot=() if _has_fewshot_in_yaml(task) else tuple(shots),
            chat=self.chat,
            held_out=tuple(_example(f"{name}-test-{i}", task, doc, name) for i, doc in enumerate(docs)),
        )


def _portable(path: str) -> str:
    """Return a path below lm_eval/tasks without the machine's folders, since it enters the evaluation's cache
    key."""
    import lm_eval

    source, package = Path(path).resolve(), Path(lm_eval.__file__).resolve().parent
    return str(source.relative_to(package.parent)) if source.is_relative_to(package) else str(source)


@cache
def _load(
    names: tuple[str, ...], folder: str | None, copy: str = "", given: str = "", content: str = ""
) -> Mapping[str, Any]:
    """Return lm-eval's task objects by name, with their data. Raises UserError if a name or the data is not
    there.

    copy: the local folder with the data, "" for the hub; given: its path as messages name it; content: its
    digest, so that edited data are read again.
    """
    import lm_eval.tasks

    bundled = Path(lm_eval.tasks.__file__).parent / at_home(folder or "")
    if not bundled.is_dir():
        raise UserError(
            f"benchmark.folder='{folder}' is no folder of {bundled.parent}; null searches all tasks"
        )
    overrides = {"dataset_path": copy} if copy else {}
    manager = lm_eval.tasks.TaskManager(include_path=str(bundled), include_defaults=False)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"benchmark.names: lm-eval has no task {', '.join(unknown)}"
            + (f" in its folder {folder}; set benchmark.folder=null to search all" if folder else "")
        )
    kinds = {name: "group" if name in manager.all_groups else "task" for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        # Only a group in a YAML file passes overrides down to the tasks it refers to.
        suite = {"group": _SUITE, "task": [{kinds[name]: name, **overrides} for name in names]}
        (Path(scratch) / "suite.yaml").write_text(json.dumps(suite), encoding="utf-8")
        manager = lm_eval.tasks.TaskManager(include_path=[str(bundled), scratch], include_defaults=False)
        try:
            return dict(manager.load(_SUITE)["tasks"])
        except (ConnectionError, FileNotFoundError, ValueError, KeyError) as error:
            place = f"benchmark.dataset_path={given}" if given else "the hub"
            raise UserError(
                f"cannot read the data of {', '.join(names)} from {place}: {first_line(error)}. Download "
                "the data set (hf download --repo-type dataset ID --local-dir FOLDER) and set "
                "benchmark.dataset_path=FOLDER"
            ) from error


def _local_copy(path: str) -> Path:
    folder = at_home(path).resolve()
    if not folder.is_dir():
        raise UserError(
            f"benchmark.dataset_path={path} is no folder; give the folder of a downloaded data set"
        )
    return folder


def _shots(name: str, task: Any, n: int, key: str) -> Sequence[Mapping[str, Any]]:
    """Return the first n few-shot examples. Raises UserError if they would be test rows, or are too few."""
    if n == 0:
        return []
    if not _has_fewshot_in_yaml(task):
        c = task.config
        split = task.fewshot_cfg.split or c.training_split or c.validation_split
        if split in (None, c.test_split or c.validation_split):
            raise UserError(
                f"the task '{name}' has no few-shot examples but its test rows, which no selector may see; "
                "choose another task"
            )
    rows = task.fewshot_docs()
    if len(rows) < n:
        raise UserError(f"{key}={n}, but the task '{name}' has only {len(rows)} few-shot examples; lower it")
    return [dict(rows[i]) for i in range(n)]


def _has_fewshot_in_yaml(task: Any) -> bool:
    return task.fewshot_cfg.split is None and task.fewshot_cfg.samples is not None


def _fewshot_config(name: str, task: Any) -> dict[str, Any]:
    """Return a few-shot configuration that takes the first rows in order.

    lm-eval's default sampler would change the prompts with every sharding.
    """
    config: dict[str, Any] = {"sampler": "first_n"}
    for key in _FEWSHOT_OVERRIDES:
        value = getattr(task.fewshot_cfg, key)
        if value is None or value == getattr(task.config, key, None):
            continue
        if callable(value):
            raise UserError(
                f"the task '{name}' formats few-shot examples by a function of its own ({key}); "
                "such a task cannot be handed on as data"
            )
        config[key] = value
    return config


def _example(id: str, task: Any, doc: Mapping[str, Any], subtask: str) -> Example:
    """Return a row as a chat: the task's description and question, then the right answer in full."""
    own = task.fewshot_cfg
    question = task.doc_to_text(doc, own.doc_to_text)
    choices = task.doc_to_choice(doc, own.doc_to_choice) if own.doc_to_choice else None
    if (
        task.multiple_input and choices
    ):  # as in Winogrande: a choice is a context, the same answer follows each
        question, choices = choices[question], None
    turns = task.build_qa_turn(
        q=question,
        c=choices,
        a=task.doc_to_target(doc, own.doc_to_target),
        gen_prefix=task.resolve_field(doc, own.gen_prefix),
    )
    if len(turns) != 2:
        raise UserError(
            f"the task '{subtask}' has a row without an answer ({id}), so it has no target answers"
        )
    description = task.resolve_field(doc, task.config.description) or ""
    return Example(
        id, (Message("user", description + turns[0].content), Message("assistant", turns[1].content)), subtask
    )
