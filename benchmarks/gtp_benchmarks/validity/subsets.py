"""Draw subsets of a pool that differ in quality: mixtures of random rows and of rows that something prefers.

Preferences take turns; every turn begins with a wholly random subset. The share of a subset's rows that its
preference draws is the same for all preferences of a turn, so that no preference has the purer subsets. From
turn to turn shares follow the golden ratio's sequence, which fills (0, 1) evenly however early it is cut off;
so any first turns are about as mixed as all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gtp_exp.errors import UserError

RANDOM = "random"
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Recipe:
    """Says how a subset is drawn."""

    number: int
    preference: str  # the name of what prefers some rows, or RANDOM
    share: float  # of the rows, drawn by the preference; the others are drawn uniformly


@dataclass(frozen=True)
class Subset:
    """Holds the rows that were drawn by a recipe."""

    recipe: Recipe
    rows: tuple[int, ...]  # positions among the candidates, ascending
    preferred: int  # how many of them were drawn by the preference


def recipes(count: int, preferences: Sequence[str]) -> list[Recipe]:
    """Return the recipes of `count` subsets; those of a smaller count are the first of them."""
    kinds = (RANDOM, *preferences)
    turns = [(number, *divmod(number, len(kinds))) for number in range(count)]
    return [Recipe(k, kinds[i], 0.0 if i == 0 else 1 - (turn + 1) * GOLDEN % 1) for k, turn, i in turns]


def rising(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Return chances that rise with the scores, float64 [N]: exp(-rank / size), rank 0 the best.

    They depend on the order of the scores alone. Of rows drawn singly, 63% are among the best `size`.
    """
    rank = torch.empty(len(scores), dtype=torch.float64)
    rank[torch.argsort(scores, descending=True, stable=True)] = torch.arange(len(scores), dtype=torch.float64)
    return torch.exp(-rank / size)


def draw(
    recipe: Recipe, chances: Mapping[str, torch.Tensor], allowed: torch.Tensor, size: int, seed: int
) -> Subset:
    """Draw `size` rows among those allowed, without repeats.

    chances: of every candidate, float [N], by the name of the preference; not normalised. Rows of chance 0
    are drawn only among the random ones; where too few have a chance, all of them are taken. allowed: bool
    [N]. seed: with the recipe's number it decides what is drawn. Raises UserError where too few rows are
    allowed.
    """
    if size > int(allowed.sum()):
        raise UserError(
            f"a subset of {size} rows cannot be drawn from {int(allowed.sum())} candidates with gradients; "
            "lower budget.amount"
        )
    generator = torch.Generator().manual_seed(seed * 1_000_003 + recipe.number)
    preferred = torch.tensor([], dtype=torch.long)
    if recipe.preference != RANDOM:
        chance = torch.where(allowed, chances[recipe.preference].double(), 0.0)
        wanted = min(round(recipe.share * size), int((chance > 0).sum()))
        if wanted:
            preferred = torch.multinomial(chance, wanted, replacement=False, generator=generator)
    left = allowed.clone()
    left[preferred] = False
    others = left.nonzero().flatten()
    others = others[torch.randperm(len(others), generator=generator)[: size - len(preferred)]]
    rows = torch.cat([preferred, others]).sort().values.tolist()
    return Subset(recipe, tuple(rows), len(preferred))
