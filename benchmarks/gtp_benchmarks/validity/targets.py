"""Tell which candidates are of the target's kind, by answers and hidden labels, to draw and to report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gtp_exp.inputs import Inputs


def answer(text: str) -> str:
    """Return an answer as it is compared: without blanks around it, in lower case."""
    return text.strip().lower()


def target_answers(inputs: Inputs) -> set[str]:
    """Return the distinct answers of the target's rows, without those that are held back."""
    assert inputs.target is not None
    return {answer(example.completion) for example in inputs.target.examples}


def target_like(inputs: Inputs) -> torch.Tensor:
    """Return bool [N]: the answer is one of the target's, or a hidden label names a subtask of the target."""
    assert inputs.target is not None
    answers = target_answers(inputs)
    subtasks = {example.subtask for example in inputs.target.examples} - {""}
    hidden = inputs.pool.hidden
    return torch.tensor(
        [
            answer(row.completion) in answers
            or bool(subtasks.intersection(map(str, hidden.get(row.id, {}).values())))
            for row in inputs.candidates.examples
        ]
    )


def answers_covered(inputs: Inputs, rows: Sequence[int]) -> int:
    """Return how many of the target's distinct answers some candidates have."""
    found = {answer(inputs.candidates.examples[row].completion) for row in rows}
    return len(found & target_answers(inputs))
