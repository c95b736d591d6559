"""IFD, instruction-following difficulty: From Quantity to Quality (Li et al., arXiv 2308.12032).

    IFD = L(answer | prompt) / L(answer),     L the mean loss per token of the answer

A ratio near 1 means that the prompt hardly helps, so the row is hard to follow; above 1 the prompt misleads
and the row is thought faulty. The largest ratios up to 1 are chosen; rows above 1 are used last, closest to
1 first, where the official code drops them.

Official code: github.com/tianyi-lab/Cherry_LLM; ratio and cut follow cherry_seletion/data_analysis.py and
data_by_IFD.py at commit 6c200ba. Ours: the untuned model scores (theirs was first tuned on 1,000 rows); "no
prompt" is what the chat template puts before any answer, where theirs is "### Response:"; the end-of-turn
token counts as part of the answer; of several turns the last is the answer. The target plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gtp_baselines.model_passes import check_batch_size, labelled_loss, to_last_label, tokens_of
from gtp_baselines.ranking import rank
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.decode import check_fields
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class IFD(Selector):
    """Choose the rows whose answers the prompt helps least, of those that it helps."""

    batch_size: int = 16  # of the forward pass; no part of the result

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        check_batch_size(self.batch_size)

    def select(self, problem: SelectionProblem) -> Selection:
        model = problem.model
        assert model is not None
        rows = [last_answer(row) for row in tokens_of(problem.candidates, model, problem.candidate_tokens)]
        header = answer_header(model.tokenizer)
        alone = [without_prompt(row, header, model.tokenizer) for row in rows]
        given = labelled_loss(rows, model, batch_size=self.batch_size, label="answers given the prompt")
        unaided = labelled_loss(alone, model, batch_size=self.batch_size, label="answers alone")
        ratio = given / unaided.clamp(min=1e-9)  # an answer that is certain without any prompt
        scores = torch.where(ratio <= 1, ratio, -ratio)
        chosen = problem.budget.take(rank(scores, problem), problem.n_tokens)
        diagnostics = {
            "above_one_in_pool": int((ratio > 1).sum()),
            "above_one_chosen": int((ratio[chosen] > 1).sum()),
        }
        return Selection(chosen, unit_weights(len(chosen)), scores.float(), diagnostics)


def last_answer(row: TokenizedExample) -> TokenizedExample:
    """The row up to the end of its last run of labelled tokens, and only that run labelled."""
    row = to_last_label(row)
    start = row.n_tokens - 1
    while start > 0 and row.labels[start - 1] != IGNORE:
        start -= 1
    return TokenizedExample(row.id, row.input_ids, (IGNORE,) * start + row.labels[start:])


def answer_header(tokenizer: Any) -> list[int]:
    """Token ids of what the chat template writes between a user's turn and the answer."""
    turn = [{"role": "user", "content": "x"}]
    before = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=False)
    after = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    header = after.removeprefix(before) if after.startswith(before) else ""
    return tokenizer(header, add_special_tokens=False)["input_ids"]


def without_prompt(row: TokenizedExample, header: Sequence[int], tokenizer: Any) -> TokenizedExample:
    """The same answer tokens behind the header alone.

    BOS comes first where the row has it and the header has not (it may be the token that opens every turn).
    """
    start = next(i for i, label in enumerate(row.labels) if label != IGNORE)
    bos = (tokenizer.bos_token_id,) if row.input_ids[0] == tokenizer.bos_token_id else ()
    if tuple(header[:1]) == bos:
        bos = ()
    context = (*bos, *header) or (tokenizer.eos_token_id,)  # the first token needs something to follow
    answer = row.input_ids[start:]
    return TokenizedExample(row.id, (*context, *answer), (IGNORE,) * len(context) + answer)
