"""Any multiple-choice data set in two files: validation rows as the target, test rows to be tested on.

validation: rows in every form that a pool takes, such as {"messages": [{"role": ..., "content": ...}, ...]}
test:       {"query": str, "choices": [str, ...], "gold": int}, gold an index into choices
Both may have "id", unique in its file, and "subtask": str. Subtasks are tested one by one,
and a selector may weigh them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from gtp_benchmarks.choice_task import ChoiceMetric, choice_task
from gtp_benchmarks.own_rows import check_limits, check_rows_of, first_of_each, read_examples, task_name
from gtp_exp.data.benchmark import Answers, EvalTask
from gtp_exp.data.examples import Example
from gtp_exp.data.reading import expand, read_rows, stems
from gtp_exp.data.values import Place, as_text
from gtp_exp.errors import UserError

PlacedRow = tuple[str, Place, Mapping[str, Any]]  # an id of the file's name and the row's number, first


@dataclass(frozen=True)
class JsonlChoice:
    """Describes a benchmark in two files.

    Row limits keep the first rows of each subtask (null: all). Few-shot rows are the first target rows.
    """

    answers: ClassVar[Answers] = Answers.CHOICES

    validation: Optional[str]  # path; None only where nothing aims at it, as among further tests
    test: str  # path
    name: str = "jsonl_choice"
    target_rows: Optional[int] = None
    test_rows: Optional[int] = None
    num_fewshot: int = 0
    chat: bool = True  # ask through the tokenizer's chat template
    metric: ChoiceMetric = ChoiceMetric.ACC

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("benchmark.name is empty; it names the task in tables, so give it one")
        check_limits(self.target_rows, self.test_rows)
        if self.num_fewshot < 0:
            raise UserError(f"benchmark.num_fewshot={self.num_fewshot} must be 0 or more")

    def check_files(self, *, aimed_at: bool, tested: bool) -> None:
        """Raise UserError for a file that is not there or has no known form."""
        if aimed_at and self.validation is not None:
            check_rows_of(self.validation, "benchmark.validation")
        if tested:
            self._test_docs()

    def target(self) -> tuple[Example, ...]:
        """Return the rows that a selector may see. Raises UserError for a row that is malformed."""
        if self.validation is None:
            raise UserError(
                "benchmark.validation=null: a benchmark to aim at, or with num_fewshot above 0, needs target "
                "rows; give the path of a file"
            )
        rows = read_examples(self.validation, "benchmark.validation", self.name)
        return tuple(first_of_each(rows, lambda row: row.subtask, self.target_rows))

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return one test task per subtask. Raises UserError for a row that is malformed."""
        docs = self._test_docs()
        shots = self.target() if self.num_fewshot else ()
        tasks = []
        for subtask in dict.fromkeys(doc["subtask"] for doc in docs):
            own = [e for e in shots if e.subtask == subtask][: self.num_fewshot]
            if len(own) < self.num_fewshot:
                raise UserError(
                    f"benchmark.num_fewshot={self.num_fewshot}, but {self.validation} has only {len(own)} "
                    f"target rows of '{subtask}'; lower it or raise benchmark.target_rows"
                )
            tasks.append(
                choice_task(
                    task_name(self.name, subtask),
                    [doc for doc in docs if doc["subtask"] == subtask],
                    metric=self.metric,
                    chat=self.chat,
                    fewshot=[_shot(e) for e in own],
                    subtask=subtask,
                )
            )
        return tuple(tasks)

    def _test_docs(self) -> list[dict[str, Any]]:
        rows = _rows(self.test, "benchmark.test", ("query", "choices", "gold"))
        seen: dict[str, Place] = {}
        docs = []
        for made_up, place, row in rows:
            doc = _test_doc(place, {"id": made_up, "subtask": self.name, **_said(row)})
            if doc["id"] in seen:
                raise UserError(
                    f"id '{doc['id']}' occurs twice: {seen[doc['id']]} and {place}; make ids unique"
                )
            seen[doc["id"]] = place
            docs.append(doc)
        return list(first_of_each(docs, lambda doc: doc["subtask"], self.test_rows))


def _rows(path: str, key: str, columns: Sequence[str]) -> list[PlacedRow]:
    """Return all rows of one file. Raises UserError if it is missing, empty or without one of the columns."""
    files = expand([path])
    rows = [
        (f"{stem}-{place.number:06d}", place, row)
        for file, stem in zip(files, stems(files), strict=True)
        for place, row in read_rows(file)
    ]
    if not rows:
        raise UserError(f"{path} ({key}) holds no rows")
    for _, place, row in rows:
        for column in columns:
            if column not in row:
                there = ", ".join(map(str, row)) or "no columns"
                raise UserError(
                    f"{place} has no column '{column}'; {key} needs {', '.join(columns)}; "
                    f"this row has {there}"
                )
    return rows


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without an id or a subtask that is null, as tables have it for a missing one."""
    return {name: value for name, value in row.items() if value is not None or name not in ("id", "subtask")}


def _test_doc(place: Place, row: Mapping[str, Any]) -> dict[str, Any]:
    query, choices, gold, subtask = row["query"], row["choices"], row["gold"], row["subtask"]
    for column, value in (("query", query), ("subtask", subtask)):
        if not as_text(value, column, place).strip():
            raise UserError(f"{place}: '{column}' must not be empty")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{place}: 'choices' must be a list of two or more texts, found {choices!r}")
    for i, choice in enumerate(choices):
        if not as_text(choice, f"choices[{i}]", place):
            raise UserError(f"{place}: 'choices[{i}]' must not be empty")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise UserError(
            f"{place}: 'gold' must be an index into the {len(choices)} choices (0 to {len(choices) - 1}), "
            f"found {gold!r}"
        )
    # Published sets have rows with the same choice twice. Both score the same and the first one is picked.
    gold = choices.index(choices[gold])
    own = as_text(str(row["id"]), "id", place)
    return {"id": own, "query": query, "choices": choices, "gold": gold, "subtask": subtask}


def _shot(example: Example) -> dict[str, Any]:
    """Return a target row as a few-shot row, whose answer is its only choice."""
    return {"id": example.id, "query": example.prompt, "choices": [example.completion], "gold": 0}
