"""Weigh the end of turn in the gradients of target rows.

A target row carries loss on its answer and on the token that ends the turn. Every row of any pool teaches
that token, and where answers are short it makes up most of a row's gradient. So the two can be collected
apart. Of n tokens with loss, k end a turn; with c the mean gradient of the others and e that of the k, the
gradient of the mean loss in which an end of turn counts `weight` times as much as another token is

    x = ((n - k) c + weight k e) / (n - k + weight k)

It is the row's own gradient for weight 1, and c, as of a row that has no end of turn, for weight 0. (Of a sum
of losses it is the same without the denominator.) BALANCED scales both sides at every checkpoint so that they
have equal shares in the target's mean, whatever the length of the answers:

    x = 1/2 c' / |mean c'| + 1/2 e' / |mean e'|,    c' = c / |c|,  e' = e / |e|

Sums of parts are exact for the plain gradient alone: Adam's directions are not linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gtp_exp.data.examples import END, IGNORE, TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import GradientFeatures, Rows, TensorRows
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.gradients.weight import Weight
from gtp_exp.model.loss import Reduction

LINEAR = "sgd"  # the one direction in which the gradients of parts add up


def check_weight(weight: Weight, direction: str) -> None:
    """Raise UserError for a weight that cannot be used with a direction of the target's gradients."""
    if isinstance(weight, float) and weight < 0:
        raise UserError(f"selector.target_end_of_turn={weight:g} must be 0 or more; 0 leaves it out")
    if weight not in (0.0, 1.0) and direction != LINEAR:
        raise UserError(
            f"selector.target_end_of_turn={getattr(weight, 'value', weight)} adds up the gradients of parts, "
            f"which selector.target_direction={direction} does not allow; set it to {LINEAR}, or "
            "target_end_of_turn to 0 or 1"
        )


def check_whole(weight: Weight, own: Weight, target: str) -> None:
    """Raise UserError for a weight that given gradients cannot serve, which hold target rows as they are.

    own: the selector's default, which says how its authors have made theirs. target: what holds the rows, for
    the message.
    """
    if weight not in (1.0, own):
        raise UserError(
            f"selector.target_end_of_turn={getattr(weight, 'value', weight)}: {target} holds the end of turn "
            f"and the content of each row in one; set it to {getattr(own, 'value', own)}, or collect the "
            "gradients in a job (gradients=lora_trajectory)"
        )


def content_of(rows: Sequence[TokenizedExample]) -> tuple[TokenizedExample, ...]:
    """Return the rows with loss on all their labelled tokens but the end of turn."""
    return _masked(rows, keep_end=False)


def end_of(rows: Sequence[TokenizedExample]) -> tuple[TokenizedExample, ...]:
    """Return the rows with loss on the end of turn alone."""
    return _masked(rows, keep_end=True)


def _masked(rows: Sequence[TokenizedExample], keep_end: bool) -> tuple[TokenizedExample, ...]:
    """Return the rows with loss on one of the two parts; raise UserError for a row that lacks it."""
    masked = []
    for row in rows:
        marks = zip(row.labels, row.parts, strict=True)
        labels = tuple(label if (part == END) == keep_end else IGNORE for label, part in marks)
        if all(label == IGNORE for label in labels):
            missing = "end of turn" if keep_end else "answer beside its end of turn"
            raise UserError(
                f"target row '{row.id}' has no {missing} to weigh apart; set selector.target_end_of_turn=1, "
                "or leave the row out"
            )
        masked.append(replace(row, labels=labels))
    return tuple(masked)


def shares(rows: Sequence[TokenizedExample], reduction: Reduction, weight: float) -> torch.Tensor:
    """Return the factors of content and end of turn in the gradient of a row, in which the latter has a
    weight: float32 [n, 2]."""
    if reduction is Reduction.SUM:
        return torch.tensor([1.0, weight]).repeat(len(rows), 1)
    ends = torch.tensor([float(sum(part == END for part in row.parts)) for row in rows])
    total = torch.tensor([float(row.n_completion_tokens) for row in rows])
    weighed = torch.stack([total - ends, weight * ends], dim=1)
    return weighed / weighed.sum(1, keepdim=True)


@dataclass(frozen=True)
class WeighedEndOfTurn:
    """Give out target gradients in which the end of turn has a weight of its own."""

    content: GradientFeatures
    end: GradientFeatures | None  # None for weight 0
    shares: torch.Tensor | None  # float32 [n, 2], see `shares`; None: balanced

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return self.content.n

    @property
    def dim(self) -> int:
        """Return the number of values in a row."""
        return self.content.dim

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Return the mean learning rate of the segment before each checkpoint."""
        return self.content.learning_rates

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the directions in which rows can be had."""
        return self.content.directions if self.end is None else (LINEAR,)

    def features(self, checkpoint: int, direction: str) -> Rows:
        """Return the rows at a checkpoint, float32 [n, dim]."""
        content = _matrix(self.content.features(checkpoint, direction))
        end = None if self.end is None else _matrix(self.end.features(checkpoint, direction))
        if self.shares is None:
            assert end is not None
            return TensorRows((_of_unit_mean(content) + _of_unit_mean(end)) / 2)
        content = content * self.shares[:, :1]
        return TensorRows(content if end is None else content + end * self.shares[:, 1:])


def _matrix(rows: Rows) -> torch.Tensor:
    """Return all rows, float32 [n, dim]."""
    return torch.cat([chunk.float() for _, chunk in rows.chunks(rows.shape[0])])


def _of_unit_mean(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows at unit norm, scaled together so that the norm of their mean is 1, too."""
    unit = unit_rows(rows)
    length = torch.linalg.vector_norm(unit.mean(0))
    return unit / length if length > 0 else unit
