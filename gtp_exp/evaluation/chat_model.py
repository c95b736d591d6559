"""The model as lm-eval asks it: prompts and answers become token ids by the function that training uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs

from gtp_exp.data.examples import IGNORE, Example, Message, TokenizedExample
from gtp_exp.data.rendering import TEMPLATE_ERRORS
from gtp_exp.data.tokenization import decode_exactly, encode, encode_begun
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.evaluation.shared_prompts import can_share, score_answers
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.lora import base_model
from gtp_exp.model.positions import rows_apart_beyond
from gtp_exp.model.stopping import stop_ids

HFLM: Any = huggingface.HFLM  # a decorator hides the class from type checkers
T = TypeVar("T")
Documents = dict[str, list[int]]  # by the name of lm-eval's task: positions among its documents

_PROBE = "A"  # stands for an answer where only what comes before it is wanted


class PromptsTooLong(Exception):
    """Tells that documents do not fit the model. Nothing has been computed yet.

    fitting: the positions of the others among those that were asked for, by task; n_long: how many do not.
    """

    def __init__(self, fitting: Documents, n_long: int) -> None:
        super().__init__(fitting, n_long)
        self.fitting, self.n_long = fitting, n_long


class ChatModel(HFLM):
    """Answers lm-eval's requests with a model in memory.

    A chat's prompt is tokenised together with its answer, as a row of training is: what the chat template
    puts between the two is part of the prompt, and an answer is scored by its own tokens. Nothing is cut from
    a prompt: documents that do not fit are told by `PromptsTooLong`. Generation stops at the end of turn.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, processes: Processes = ALONE) -> None:
        """Wrap a model. processes: among which lm-eval divides the documents."""
        inner = base_model(loaded.model)
        inner.tie_weights = lambda: None  # lm-eval's call fails where a shared weight has an adapter
        try:
            super().__init__(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                batch_size=batch_size,
                max_length=loaded.max_length,
                softmax_dtype="float32",  # as in training; by default it is the model's own
            )
        finally:
            del inner.tie_weights
        self._processes = processes
        if processes.size > 1:
            self._divide()
        self._chats: dict[str, Sequence[Mapping[str, str]]] = {}  # by prompt, as text
        self._pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}  # by prompt and answer
        self._prompts: dict[str, list[int]] = {}  # token ids by prompt
        self._shares_prompts = can_share(loaded.model)
        self._asked: Sequence[Any] = ()  # requests of the call that is under way
        (probe,) = self._rows([([{"role": "user", "content": _PROBE}], _PROBE)])
        end = max(t for t, label in enumerate(probe.labels) if label != IGNORE)
        self._stops = stop_ids(loaded.tokenizer)
        first, stop = probe.answers[-1]
        # Blanks that the template writes around an answer, for the model to write.
        answer = loaded.tokenizer.decode(probe.input_ids[first:stop])
        self._before = answer[: answer.index(_PROBE)]
        self._behind = loaded.tokenizer.decode(probe.input_ids[stop:end])

    def _divide(self) -> None:
        """Let lm-eval divide the documents among the processes. By itself it does so only for models that it
        has launched, and by local rank."""
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._device = self.accelerator.device
        self._rank, self._world_size = self._processes.rank, self._processes.size

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as text, and remember its turns.

        A description that lm-eval puts into a system turn opens the question instead, as in the held-out
        rows: not every template has a system turn, and model.system_prompt stands in that place. Raises
        UserError where the template refuses the chat.
        """
        history = list(chat_history)
        if len(history) > 1 and history[0]["role"] == "system":
            system, first, *rest = history
            history = [{**first, "content": system["content"] + first["content"]}, *rest]
        begun = "" if add_generation_prompt else history[-1]["content"]  # an answer to be continued
        turns = history if add_generation_prompt else history[:-1]
        try:
            prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TEMPLATE_ERRORS as error:
            raise UserError(
                f"the model's chat template refuses a prompt of a test ({error}): "
                f"{history[-1]['content'][:80]!r}; ask without it (benchmark.chat=false), or change that test"
            ) from error
        text = prompt + begun
        self._chats[text] = history
        return text

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each answer after its prompt, and whether it is the likeliest."""
        pairs = [pair for pair in dict.fromkeys(r.args for r in requests) if pair[0] in self._chats]
        rows = self._rows([(self._chats[prompt], answer) for prompt, answer in pairs])
        begun = self._begun(dict.fromkeys(prompt for prompt, _ in pairs))
        for pair, row in zip(pairs, rows, strict=True):
            first, stop = row.answers[-1]
            ids = list(row.input_ids[:stop])
            parts = _parted(ids, begun[pair[0]], self.tokenizer) if pair[0] in begun else None
            self._pairs[pair] = parts or (ids[:first], ids[first:])
            if not self._pairs[pair][1]:
                raise UserError(f"the answer {pair[1]!r} of a test has no token of its own: {pair[0]!r}")
        self._asked = requests
        return super().loglikelihood(requests, disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self._pairs.get((context, continuation)) or super()._encode_pair(context, continuation)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        choices = bool(self._asked)
        self._check_lengths(len(prompt) + len(answer) for _, prompt, answer in requests)
        if choices and self._shares_prompts:
            pairs = [(prompt, answer) for _, prompt, answer in requests]
            return score_answers(self.model, pairs, int(self.batch_size))
        limit = rows_apart_beyond(self.model)
        long = [limit is not None and len(prompt) + len(answer) > limit for _, prompt, answer in requests]
        if len(set(long)) < 2:
            return super()._loglikelihood_tokens(requests, *args, **kwargs)
        scores: dict[bool, Iterator[tuple[float, bool]]] = {}
        for beyond in (True, False):  # lm-eval pads all that it is given, and a long one scales the others
            part = [request for request, is_long in zip(requests, long, strict=True) if is_long is beyond]
            scores[beyond] = iter(super()._loglikelihood_tokens(part, *args, **kwargs))
        return [next(scores[is_long]) for is_long in long]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that the model writes after each prompt, up to the end of turn or the task's own
        stops."""
        prompts = list(dict.fromkeys(r.args[0] for r in requests))
        chats = [text for text in prompts if text in self._chats]
        self._prompts = {text: self.tok_encode(text) for text in prompts if text not in self._chats}
        rows, begun = self._rows([(self._chats[text], _PROBE) for text in chats]), self._begun(chats)
        for text, row in zip(chats, rows, strict=True):
            self._prompts[text] = begun.get(text) or list(row.input_ids[: row.answers[-1][0]])
        self._asked = requests
        self._check_lengths(
            len(self._prompts[r.args[0]]) + self._tokens_to_write(r.args[1]) for r in requests
        )
        written = super().generate_until(requests, disable_tqdm)
        for i, request in enumerate(requests):
            if request.args[0] in self._chats:
                written[i] = written[i].removeprefix(self._before).removesuffix(self._behind)
        return written

    def _tokens_to_write(self, settings: Mapping[str, Any]) -> int:
        """Return how many tokens a task reserves for what the model writes."""
        normalized: Any = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        return normalized["max_gen_toks"]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prompts as token ids and attention mask, padded on the left."""
        rows = [self._prompts[text] for text in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> torch.Tensor:
        written = super()._model_generate(context, max_length, stop, eos_token_id=self._stops, **kwargs)
        # lm-eval goes on with every row of a batch until the last has ended, and reads what is behind.
        new = written[:, context.shape[1] :]
        new[torch.isin(new, torch.tensor(self._stops, device=new.device)).cumsum(1) > 0] = (
            self.tokenizer.pad_token_id
        )
        return written

    def _rows(self, chats: Sequence[tuple[Sequence[Mapping[str, str]], str]]) -> list[TokenizedExample]:
        """Return chats with their answers as rows of training. Raises UserError where there is none."""
        examples = [_example(history, answer) for history, answer in chats]
        return _possible(encode(examples, self.tokenizer), examples)

    def _begun(self, prompts: Iterable[str]) -> dict[str, list[int]]:
        """Return the token ids of the prompts that open the answer themselves, by prompt."""
        begun = [text for text in prompts if self._chats[text][-1]["role"] == "assistant"]
        examples = [_example(self._chats[text], "") for text in begun]
        return dict(zip(begun, _possible(encode_begun(examples, self.tokenizer), examples), strict=True))

    def _check_lengths(self, lengths: Iterable[int]) -> None:
        """Raise PromptsTooLong, in every process, where a request is longer than the model's context."""
        if not self._asked:
            return
        asked, self._asked = self._asked, ()
        documents = [(r.task_name, r.doc_id) for r in asked]
        long = {d for d, n in zip(documents, lengths, strict=True) if n > self.max_length}
        everywhere = self._processes.all_gather((sorted(set(documents)), sorted(long)))
        long = {d for _, part in everywhere for d in part}
        if long:
            fitting: Documents = {}
            for name, doc_id in sorted({d for part, _ in everywhere for d in part}):
                fitting.setdefault(name, [])
                if (name, doc_id) not in long:
                    fitting[name].append(doc_id)
            raise PromptsTooLong(fitting, len(long))


def _example(history: Sequence[Mapping[str, str]], answer: str) -> Example:
    """Return a chat with its answer, which the chat may have begun."""
    begun = history[-1]["content"] if history[-1]["role"] == "assistant" else ""
    turns = history[:-1] if begun else history
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    return Example("", (*messages, Message("assistant", begun + answer)))


def _possible(rows: Sequence[T | str], examples: Sequence[Example]) -> list[T]:
    """Return the rows of test prompts. Raises UserError for one that says why there is none."""
    found = list[T]()
    for row, example in zip(rows, examples, strict=True):
        if isinstance(row, str):
            raise UserError(f"a test prompt cannot be asked with this model ({row}): {example.prompt[:80]!r}")
        found.append(row)
    return found


def _parted(ids: list[int], begun: list[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and its answer, of which the prompt holds the beginning.

    ids: of both in one text; begun: of the prompt alone. Where a token of the text spans the end of the
    prompt, the answer is encoded as a text of its own, as what follows the prompt at inference. A tokenizer
    that would add a blank to it gives the answer that token whole.
    """
    n, text, before = len(begun), decode_exactly(ids, tokenizer), decode_exactly(begun, tokenizer)
    if decode_exactly(ids[:n], tokenizer) == before:
        return ids[:n], ids[n:]
    rest = tokenizer(text.removeprefix(before), add_special_tokens=False)["input_ids"]
    if decode_exactly(begun + rest, tokenizer) == text:
        return begun, rest
    shared = next((k for k, (a, b) in enumerate(zip(ids, begun, strict=False)) if a != b), len(ids))
    return ids[:shared], ids[shared:]
