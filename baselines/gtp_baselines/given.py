"""A choice that was made elsewhere: a list of ids in a file, or a column of scores in the pool.

What deita, OpenDataArena, a judge or a person has chosen is so trained, tested and ranked like any other
choice. The target plays no part. A list is a text file with an id a line, or any table or JSON with a column
`id` and, optionally, `weight` (or `gtp_weight`); a run's folder and its `selected/` are lists, too. A budget
takes the first rows of a list; budget=all takes it whole. Rows of the pool that are listed and no candidates,
because they are too long, say, are counted in the diagnostics.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Optional

from gtp_exp.config import IN_KEY
from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.hashing import digest
from gtp_exp.data.reading import expand, read_rows, read_text, shown
from gtp_exp.data.values import Place, as_text
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.paths import at_home
from gtp_exp.selection.base import Budget, Selection, SelectionProblem, Selector, unit_weights

log = logging.getLogger(__name__)

WEIGHTS = ("weight", "gtp_weight")  # the column of the weights; the second in a run's selected/


class Order(Enum):
    """Name which of the scores come first."""

    LARGEST = "largest"
    SMALLEST = "smallest"
    MIDDLE = "middle"  # around the median


class ListedRow(NamedTuple):
    """Hold one entry of a list."""

    place: Place
    id: str
    weight: float | None


@dataclass(frozen=True)
class Given(Selector):
    """Choose the rows that a file lists, in its order, or those with the first scores."""

    # The key of a selection holds what the file says, by `reads`, not where it lies.
    file: Optional[str] = field(default=None, metadata={IN_KEY: False})
    score: Optional[str] = None  # one of dataset.scores
    order: Order = Order.LARGEST  # of the scores

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        if (self.file is None) == (self.score is None):
            raise UserError(
                f"selector.file={self.file} and selector.score={self.score}: give one of them, "
                "selector.file=FILE with the ids of the rows to take, or selector.score=COLUMN of the pool "
                "(dataset.scores=[COLUMN])"
            )

    def reads(self) -> Mapping[str, Any]:
        if self.file is None:
            return {}
        return {"list": digest([(row.id, row.weight) for row in read_list(self.file)])}

    def score_columns(self) -> Sequence[str]:
        return () if self.score is None else (self.score,)

    def check_pool(self, pool: Pool) -> None:
        if self.file is None:
            return
        rows, ids = read_list(self.file), {example.id for example in pool.examples}
        if unknown := [row for row in rows if row.id not in ids]:
            raise UserError(
                f"{len(unknown)} of the {len(rows)} ids of selector.file={self.file} are not among the "
                f"{len(ids)} usable rows of the pool, first '{unknown[0].id}' ({unknown[0].place}); ids are "
                "those of the pool's column id, else the file's name and the row's number: its first is "
                f"'{pool.examples[0].id}'. Correct the list, or read more of the pool (dataset.rows=null)"
            )

    def offers(self, n_candidates: int) -> int:
        return n_candidates if self.file is None else min(n_candidates, len(read_list(self.file)))

    def check_budget(self, budget: Budget, candidates: Sequence[Example]) -> None:
        wanted = budget.rows(len(candidates))
        if self.file is None:
            return
        rows, ids = read_list(self.file), {example.id for example in candidates}
        listed = sum(row.id in ids for row in rows)
        if listed == 0 or (wanted is not None and listed < wanted and not budget.whole):
            asked = "rows of it" if wanted is None or budget.whole else f"{wanted} rows"
            raise UserError(
                f"selector.file={self.file} lists {listed} candidates, beside {len(rows) - listed} rows that "
                f"are none, and the budget asks for {asked}; set budget=all to take the list as it is, lower "
                "the budget, or see in the log why rows of the pool are no candidates"
            )

    def select(self, problem: SelectionProblem) -> Selection:
        return self._by_score(problem) if self.file is None else self._by_list(self.file, problem)

    def _by_list(self, file: str, problem: SelectionProblem) -> Selection:
        import torch

        position = {example.id: i for i, example in enumerate(problem.candidates)}
        rows = read_list(file)
        weights = {position[row.id]: row.weight for row in rows if row.id in position}
        self.check_budget(problem.budget, problem.candidates)
        if lost := len(rows) - len(weights):
            log.warning("%d of the %d rows of %s are no candidates", lost, len(rows), file)
        chosen = problem.budget.take(torch.tensor(list(weights), dtype=torch.long), problem.n_tokens)
        diagnostics = {"listed": len(rows), "listed_no_candidates": lost}
        return Selection(chosen, _weights(weights, chosen.tolist(), file), _zeros(problem), diagnostics)

    def _by_score(self, problem: SelectionProblem) -> Selection:
        from gtp_baselines.ranking import rank, toward_middle

        assert self.score is not None
        column = problem.scores[self.score]
        scores = -column if self.order is Order.SMALLEST else column
        if self.order is Order.MIDDLE:
            scores = toward_middle(rank(column, problem))
        chosen = problem.budget.take(rank(scores, problem), problem.n_tokens)
        diagnostics = {
            "mean_score": float(column[chosen].mean()),
            "mean_score_of_candidates": float(column.mean()),
        }
        return Selection(chosen, unit_weights(len(chosen)), scores.float(), diagnostics)


def _zeros(problem: SelectionProblem) -> Any:
    """Return the scores of a list, which has none: float32 [N]."""
    import torch

    return torch.zeros(len(problem.candidates))


def _weights(weights: Mapping[int, float | None], chosen: Sequence[int], file: str) -> Any:
    """Return the weights of the chosen rows, scaled to mean 1: float32 [M]. Raises UserError where all are
    0."""
    import torch

    of_chosen = [1.0 if (weight := weights[i]) is None else weight for i in chosen]
    mean = math.fsum(weight / len(of_chosen) for weight in of_chosen)
    if mean == 0:
        raise UserError(
            f"the weights of the {len(chosen)} chosen rows of {file} are all 0; give one a weight above 0, "
            "or leave the column out"
        )
    return torch.tensor([weight / mean for weight in of_chosen], dtype=torch.float32)


def read_list(file: str) -> list[ListedRow]:
    """Return the entries of a list in its order.

    file: a path, of a file or of a folder that a run wrote. Raises UserError, by file and line, for a list
    that cannot be read or is empty, an id that is there twice, and a weight that is no number of 0 or more.
    """
    path = _file_of(at_home(file), file)
    rows: dict[str, ListedRow] = {}
    for row in _lines(path) if path.suffix.lower() == ".txt" else _entries(path):
        if row.id in rows:
            raise UserError(
                f"the id '{row.id}' is listed twice: {rows[row.id].place} and {row.place}; list it once, "
                "with a larger weight if it is to count more"
            )
        rows[row.id] = row
    if not rows:
        raise UserError(f"{shown(path)} lists no row; give a file with the ids of the rows to take")
    return list(rows.values())


def _file_of(path: Path, given: str) -> Path:
    """Return the file of a list, in a run's folder or in its selected/, too."""
    if not path.is_dir():
        return path if path.suffix.lower() == ".txt" and path.is_file() else _only(expand([given]), given)
    for pattern in ("selected.jsonl", "data/*.parquet"):
        if found := sorted(path.glob(pattern)):
            return _only(found, given)
    raise UserError(
        f"selector.file={given} is a folder without selected.jsonl or data/*.parquet, as a run writes them; "
        "name the file"
    )


def _only(files: Sequence[Path], given: str) -> Path:
    """Return the one file of a list. Raises UserError for several, of which the order would be unclear."""
    if len(files) > 1:
        raise UserError(
            f"selector.file={given} stands for {len(files)} files, first {files[0].name} and "
            f"{files[1].name}; name one, or join them"
        )
    return files[0]


def _lines(path: Path) -> Iterator[ListedRow]:
    """Yield the ids of a text file, one a line; blank lines are passed over."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield ListedRow(Place(shown(path), number), line.strip(), None)


def _entries(path: Path) -> Iterable[ListedRow]:
    """Yield the rows of a table or of JSON lines; where one has a weight, all must."""
    placed = list(read_rows(path))
    column = next((name for name in WEIGHTS if any(name in row for _, row in placed)), None)
    for place, row in placed:
        if "id" not in row:
            raise UserError(f"{place} has no 'id'; it has {', '.join(map(str, row)) or 'nothing'}")
        value = row["id"]
        id = str(value) if type(value) is int else as_text(value, "id", place)
        if not id:
            raise UserError(f"{place} has an empty 'id'; name the row, or remove the line")
        yield ListedRow(place, id, None if column is None else _weight(row.get(column), id, place))


def _weight(value: Any, id: str, place: Place) -> float:
    """Return a weight as a number. Raises UserError unless it is finite and 0 or more."""
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(
            f"{place}: the weight of '{id}' is {value!r}; it must be a finite number of 0 or more"
        )
    return weight
