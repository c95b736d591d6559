"""Compute the loss of labelled tokens without the logits of a whole batch.

The logits of a long row, tokens x vocabulary, are by far its largest tensor. They are needed at labelled
tokens only, and a few tokens at a time: the model runs once up to its final hidden states, and its own head
then runs over pieces of these. So the loss is that of the model, whatever its head does (scales, caps,
adapters), and what is held at a time does not grow with the row.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from gtp_exp.data.examples import IGNORE
from gtp_exp.model.forwards import forwards_replaced
from gtp_exp.model.lora import base_model

# Values of the logits that are held at a time: 64 MiB in float32.
_PIECE = 1 << 24
# Up to so many (1 GiB in float32) they are kept for the backward pass where the head itself is trained: to
# compute them again there costs one product more.
_KEPT = 1 << 28

Head = Callable[[torch.Tensor], torch.Tensor]  # from hidden states [n, H] to logits [n, V]


def token_nll(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token, in nats, [n] in float32 or wider.

    logits: [n, vocabulary], each row the prediction of its token; tokens: int64 [n].
    """
    # As the models of transformers do before the softmax.
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(wide, tokens, reduction="none")


def labelled_nll(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a causal LM over a batch; return the negative log-likelihood of each labelled token [n], and the
    row and the column of each in `labels` [n].

    inputs: what the model takes; labels: [rows, tokens], unshifted, IGNORE where there is none.
    """
    row, position = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    tokens = labels[row, position + 1]
    inner = _without_wrappers(model)
    backbone = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not takes_logits_to_keep(model) or not isinstance(backbone, torch.nn.Module):
        return token_nll(model(**inputs).logits[row, position], tokens), row, position + 1
    own = inner.forward

    def losses(*args: Any, **kwargs: Any) -> Any:
        # Called in the place of the model's forward, so that its wrappers do around it what they do.
        with _noted({backbone, inner.get_decoder()}) as calls:
            none = own(*args, **kwargs, logits_to_keep=row.new_empty(0))
        if not calls:  # what its head takes the hidden states from is not known here
            return type(none)(logits=token_nll(own(*args, **kwargs).logits[row, position], tokens))
        called, output = calls[-1]  # the outermost, for it ends last

        def head(hidden: torch.Tensor) -> torch.Tensor:
            given = type(output)(**{**output, "last_hidden_state": hidden.unsqueeze(0)})
            with forwards_replaced({called: lambda *args, **kwargs: given}):
                return own(*args, **kwargs).logits[0]

        hidden, trained = output.last_hidden_state[row, position], _trains_head(inner, backbone)
        return type(none)(logits=_nll(hidden, tokens, head, none.logits.shape[-1], trained))

    with forwards_replaced({inner: losses}):
        return model(**inputs).logits, row, position + 1


def _nll(
    hidden: torch.Tensor, tokens: torch.Tensor, head: Head, n_logits: int, trained: bool
) -> torch.Tensor:
    """Return the negative log-likelihood of each token [n] by its hidden states [n, H], piece by piece.

    n_logits: of one token; trained: whether the head has parameters of its own to train.
    """
    size = max(1, _PIECE // n_logits)
    if not len(tokens) or (trained and torch.is_grad_enabled() and len(tokens) * n_logits <= _KEPT):
        return token_nll(head(hidden), tokens)
    if torch.is_grad_enabled() and hidden.requires_grad and not trained:
        return _FrozenHead.apply(hidden, tokens, head, size)

    def piece(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return token_nll(head(h), t)

    pairs = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([checkpoint(piece, h, t, use_reentrant=False) for h, t in pairs])


class _FrozenHead(torch.autograd.Function):
    """Computes token losses l_k = nll(head(h_k), token_k). A loss depends on its own hidden state alone, so
    dl_k/dh_k is computed beside it, and the backward pass needs no logits: g_k dl_k/dh_k."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, tokens: torch.Tensor, head: Head, size: int) -> torch.Tensor:
        """Return the losses [n] of hidden states [n, H], `size` of them at a time."""
        slopes, losses = torch.empty_like(hidden), []
        for h, t, slope in zip(hidden.split(size), tokens.split(size), slopes.split(size), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                nll = token_nll(head(h), t)
                slope.copy_(torch.autograd.grad(nll.sum(), h)[0])
            losses.append(nll.detach())
        ctx.save_for_backward(slopes)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Return the gradient of the hidden states."""
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0].to(slopes.dtype).unsqueeze(1), None, None, None


def _trains_head(inner: torch.nn.Module, backbone: torch.nn.Module) -> bool:
    """Say whether anything behind the backbone is trained, its weights that are tied to others included."""
    behind = [child for child in inner.children() if child is not backbone]
    return any(p.requires_grad for child in behind for p in child.parameters())


def vocabulary_size(model: Any) -> int:
    """Return how many logits the model computes for a token; 0 where its configuration does not say."""
    config = _without_wrappers(model).config
    return int(getattr(config.get_text_config(), "vocab_size", 0))


def takes_logits_to_keep(model: Any) -> bool:
    """Return whether the model can be asked for its logits at some positions only."""
    return _takes(model, "logits_to_keep")


def no_cache(model: Any) -> dict[str, bool]:
    """Return what tells a model to keep no keys and values of a pass: nothing is written behind it, and of
    long rows they take more memory than all else. Empty for a model that cannot be told."""
    return {"use_cache": False} if _takes(model, "use_cache") else {}


def _takes(model: Any, argument: str) -> bool:
    """Say whether the model's forward names an argument."""
    return argument in inspect.signature(_without_wrappers(model).forward).parameters


def _without_wrappers(model: Any) -> Any:
    """Return the model without the wrapper of data-parallel training, and PEFT's."""
    return base_model(getattr(model, "module", model))


@contextlib.contextmanager
def _noted(modules: Collection[torch.nn.Module]) -> Iterator[list[tuple[torch.nn.Module, Any]]]:
    """Yield a list that gets each of the modules that gives hidden states, with its output when it ends.

    Some models pass over their backbone, and call the decoder inside it (OPT); one calls its output head a
    decoder (ModernBERT).
    """
    calls: list[tuple[torch.nn.Module, Any]] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        if hasattr(output, "last_hidden_state"):
            calls.append((module, output))

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
