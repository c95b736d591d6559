r"""Target and test rows of the user's own, with answers of any form, judged by their held-out loss.

    gtp-exp dataset=jsonl 'dataset.files=[pool.jsonl]' benchmark=jsonl benchmark.target=mine.jsonl \
            until=selection

Rows come in every form that a pool takes. An optional column `subtask` (text) divides them: subtasks are
tested one by one, and a selector may weigh them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Optional

from gtp_benchmarks.own_rows import check_limits, check_rows_of, first_of_each, read_examples, task_name
from gtp_benchmarks.written_task import written_task
from gtp_exp.data.benchmark import HELD_OUT_LOSS, Answers, EvalTask
from gtp_exp.data.examples import Example
from gtp_exp.data.forms import ColumnNames, Format
from gtp_exp.errors import UserError


class TextMetric(Enum):
    """Names what is measured of a test row."""

    LOSS = HELD_OUT_LOSS  # of its answer
    # Of an answer that the model writes, blanks around it aside; and the loss:
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"  # longest common subsequence of words, 0 to 1
    CHRF = "sentence_chrf"  # n-grams of characters, 0 to 1


@dataclass(frozen=True)
class Jsonl:
    """Describes a benchmark of the user's files.

    Row limits keep the first rows of each subtask (null: all).
    """

    answers: ClassVar[Answers] = Answers.TEXT

    target: Optional[str] = None  # path or glob pattern; None only where nothing aims at it
    test: Optional[str] = None  # path or glob pattern; None only where nothing is tested
    name: str = "jsonl"
    target_rows: Optional[int] = None
    test_rows: Optional[int] = None
    metric: TextMetric = TextMetric.LOSS
    max_new_tokens: int = 64  # that the model may write for a metric of written answers
    format: Format = Format.AUTO
    columns: ColumnNames = field(default_factory=ColumnNames)

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("benchmark.name is empty; it names the task in tables, so give it one")
        if self.target is None and self.test is None:
            raise UserError(
                "benchmark.target and benchmark.test are both null; give benchmark.target=FILE, the rows to "
                "aim at, and to test what was tuned benchmark.test=FILE"
            )
        check_limits(self.target_rows, self.test_rows)
        if self.max_new_tokens < 1:
            raise UserError(f"benchmark.max_new_tokens={self.max_new_tokens} writes nothing; use 64 or so")

    def check_files(self, *, aimed_at: bool, tested: bool) -> None:
        """Raise UserError for a file that is needed and not given, not there or of no known form, and what
        its first rows show."""
        self.check_given(aimed_at=aimed_at, tested=tested)
        wanted = {"target": self.target if aimed_at else None, "test": self.test if tested else None}
        for key, pattern in wanted.items():
            if pattern is not None:
                check_rows_of(pattern, f"benchmark.{key}", format=self.format, columns=self.columns)

    def check_given(self, *, aimed_at: bool, tested: bool) -> None:
        """Raise UserError for a file that is needed and not given."""
        if aimed_at and self.target is None:
            raise UserError(
                "benchmark.target=null: a benchmark to aim at needs target rows; give benchmark.target=FILE"
            )
        if tested and self.test is None:
            raise UserError(
                "benchmark.test=null, and until=evaluation tests what was tuned: give benchmark.test=FILE, "
                "or end before by until=validation (the loss on target rows held back) or until=selection"
            )

    def benchmark(self) -> RowsOfFiles:
        """Return the benchmark."""
        return RowsOfFiles(self)


@dataclass(frozen=True)
class RowsOfFiles:
    """Reads the target and the tests of a benchmark of the user's files."""

    answers: ClassVar[Answers] = Answers.TEXT

    files: Jsonl

    def target(self) -> tuple[Example, ...]:
        """Return the rows that a selector may see. Raises UserError for a row that is malformed."""
        self.files.check_given(aimed_at=True, tested=False)
        return self._read(self.files.target, "benchmark.target", self.files.target_rows)

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return one test task per subtask, none without a test. Raises UserError for a row that is
        malformed."""
        rows = self._read(self.files.test, "benchmark.test", self.files.test_rows)
        return tuple(
            self._task(subtask, [row for row in rows if row.subtask == subtask])
            for subtask in dict.fromkeys(row.subtask for row in rows)
        )

    def _read(self, pattern: str | None, key: str, limit: int | None) -> tuple[Example, ...]:
        files = self.files
        if pattern is None:
            return ()
        rows = read_examples(pattern, key, files.name, format=files.format, columns=files.columns)
        return tuple(first_of_each(rows, lambda row: row.subtask, limit))

    def _task(self, subtask: str, rows: Sequence[Example]) -> EvalTask:
        name = task_name(self.files.name, subtask)
        if self.files.metric is TextMetric.LOSS:
            return EvalTask(name, HELD_OUT_LOSS, {}, (), held_out=tuple(rows))
        docs = tuple(_asked(row, self.files.metric) for row in rows)
        # An answer ends at the end of turn; of one line, also at a line break.
        until = [] if any("\n" in doc["answer"] for doc in docs) else ["\n"]
        return written_task(
            name,
            docs,
            pattern=r"^\s*([\s\S]*?)\s*$",
            until=until,
            max_tokens=self.files.max_new_tokens,
            held_out=rows,
            metric=self.files.metric.value,
        )


def _asked(row: Example, metric: TextMetric) -> dict[str, Any]:
    """Return a row as a question whose answer is to be written.

    Raises UserError for another conversation than one question and one answer.
    """
    if [message.role for message in row.messages] != ["user", "assistant"] or row.tools:
        raise UserError(
            f"the test row '{row.id}' is more than one question and its answer, which benchmark.metric="
            f"{metric.value} cannot ask; leave it out, or use benchmark.metric={HELD_OUT_LOSS}"
        )
    return {"id": row.id, "query": row.prompt, "answer": row.completion.strip()}
