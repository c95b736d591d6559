"""Score several answers after one prompt with one pass over the prompt: its keys and values serve them all.

lm-eval repeats the prompt before every choice of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from gtp_exp.data.batching import length_sorted_batches
from gtp_exp.model.loss import takes_logits_to_keep, token_nll
from gtp_exp.model.positions import scaled_beyond

Request = tuple[Sequence[int], Sequence[int]]  # token ids of the prompt and of the answer
Score = tuple[float, bool]  # log-likelihood in nats; whether every token of the answer is the likeliest


def can_share(model: Any) -> bool:
    """Return whether the model keeps all keys and values of a prompt, as plain attention does, and attends to
    them by their positions.

    A model with a sliding window or a recurrent state keeps less. Others look at where a key lies in the
    cache, in which prompts are padded, or scale all positions by the longest row.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config()
    if _looks_at_the_place(config) or scaled_beyond(config) is not None:
        return False
    cache = DynamicCache(config=model.config)
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _looks_at_the_place(config: Any) -> bool:
    """Say whether attention depends on the place of a key in the cache: GPT-Neo's local windows, and MPT's
    ALiBi."""
    local = "local" in (getattr(config, "attention_layers", None) or ())
    return local or bool(getattr(getattr(config, "attn_config", None), "alibi", False))


@torch.no_grad()  # inference_mode would spoil gathered weights for passes outside it
def score_answers(model: Any, requests: Sequence[Request], batch_size: int) -> list[Score]:
    """Return the score of every answer after its prompt, equal to that of prompt and answer in one sequence.

    batch_size: of prompts at a time, and of answers at a time. Prompts and answers hold one token or more.
    """
    answers_of: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(requests):
        answers_of.setdefault(tuple(prompt), []).append(index)
    prompts = list(answers_of)
    nll = torch.zeros(len(requests), dtype=torch.float64)
    greedy = torch.ones(len(requests), dtype=torch.bool)

    def count(indices: Sequence[int], logits: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor) -> None:
        """Add the tokens of some answers, [answers, tokens, vocabulary] and [answers, tokens]."""
        where, rows = real.nonzero(as_tuple=True)[0].cpu(), torch.tensor(indices)
        flat, wanted = logits[real], tokens[real]
        nll.index_add_(0, rows[where], token_nll(flat, wanted).double().cpu())
        greedy[rows[where[(flat.argmax(-1) != wanted).cpu()]]] = False

    with tqdm(total=len(requests), desc="choices", unit="choice", delay=2.0) as progress:
        for batch in length_sorted_batches([len(prompt) for prompt in prompts], batch_size):
            pairs = [(row, i) for row, p in enumerate(batch) for i in answers_of[prompts[p]]]
            passed = _pass_prompts(model, [prompts[p] for p in batch])
            device, rows = passed.logits.device, torch.tensor([row for row, _ in pairs])
            first = torch.tensor([[requests[i][1][0]] for _, i in pairs], device=device)
            count([i for _, i in pairs], passed.logits[rows][:, None], first, torch.ones_like(first) > 0)
            longer = [(row, i) for row, i in pairs if len(requests[i][1]) > 1]
            for part in length_sorted_batches([len(requests[i][1]) for _, i in longer], batch_size):
                chosen = [longer[k] for k in part]
                answers = [requests[i][1] for _, i in chosen]
                logits, tokens, real = passed.follow(model, [row for row, _ in chosen], answers)
                count([i for _, i in chosen], logits, tokens, real)
            progress.update(len(pairs))
    return list(zip((-nll).tolist(), greedy.tolist(), strict=True))


class _Passed:
    """Holds a model's keys and values of some prompts, and its prediction behind each."""

    def __init__(self, cache: Any, mask: torch.Tensor, logits: torch.Tensor) -> None:
        self.cache, self.mask, self.logits = cache, mask, logits  # mask: [prompts, longest]

    def follow(
        self, model: Any, rows: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits that predict each answer's tokens behind the first, these tokens, and where there
        are any, for answers after the prompts of the given rows."""
        from transformers import DynamicCache

        device, index = self.mask.device, torch.tensor(rows, device=self.mask.device)
        inputs, real = _padded([answer[:-1] for answer in answers], device)
        targets, _ = _padded([answer[1:] for answer in answers], device)
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[index], layer.values[index], number)
        lengths = self.mask.sum(1)[index]
        output = model(
            input_ids=inputs,
            attention_mask=torch.cat([self.mask[index], real], dim=1),
            position_ids=lengths[:, None] + torch.arange(inputs.shape[1], device=device),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, targets, real > 0


def _pass_prompts(model: Any, prompts: Sequence[Sequence[int]]) -> _Passed:
    """Run the model over prompts, padded on the right."""
    device = next(model.parameters()).device
    ids, mask = _padded(prompts, device)
    last = mask.sum(1) - 1
    kept, column = last.unique(return_inverse=True)
    more = {"logits_to_keep": kept} if takes_logits_to_keep(model) else {}
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **more)
    column = column if more else last
    return _Passed(output.past_key_values, mask, output.logits[torch.arange(len(prompts)), column])


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of token ids padded on the right with zeros, and where they are, both int64."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids.to(device), mask.to(device)
