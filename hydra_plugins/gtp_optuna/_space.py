"""The search space: swept overrides of Hydra as distributions of Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from gtp_exp.errors import UserError

Space = dict[str, BaseDistribution]  # by the override's key, such as +train.epochs


def divide(overrides: Sequence[Override]) -> tuple[list[str], Space]:
    """Return the overrides that all jobs share, and the search space; a later override replaces an earlier
    one of the same key.

    Raises UserError, with the override, for one that is no search space and where nothing is to be searched.
    """
    last = {override.key_or_group: override for override in overrides}
    swept = [override for override in last.values() if override.is_sweep_override()]
    fixed = [override.input_line or "" for override in last.values() if not override.is_sweep_override()]
    if not swept:
        raise UserError(
            "there is nothing to search; give values such as "
            "'train.learning_rate=tag(log, interval(1e-5, 1e-2))' or hydra.sweeper.params"
        )
    return fixed, {override.get_key_element(): distribution(override) for override in swept}


def distribution(override: Override) -> BaseDistribution:
    """Return what a swept override lets Optuna choose from. The stop of a range is not in it, as in Hydra."""
    sweep = override.value()
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    if unknown := sorted(tags - {"log"}):
        raise UserError(f"{override.input_line}: the tag '{unknown[0]}' is unknown; the only one is log")
    log = "log" in tags
    if isinstance(sweep, IntervalSweep):
        return _numbers(override, sweep.start, sweep.end, None, log)
    if isinstance(sweep, RangeSweep):
        ends = _ends(override, sweep)
        return _numbers(override, min(ends), max(ends), abs(sweep.step), log)
    if log:
        raise UserError(f"{override.input_line}: log is for interval and range, not for a choice")
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise UserError(f"{override.input_line} is a choice among nothing")
    return CategoricalDistribution(choices)


def _ends(override: Override, sweep: RangeSweep) -> tuple[Any, Any]:
    """Return the first and the last value of a range, reckoned in decimals: a sum of binary 0.3s misses 0.9,
    and Optuna would leave it out."""
    given = (sweep.start, sweep.stop, sweep.step)
    start, stop, step = (Decimal(str(number)) for number in given)
    if not all(number.is_finite() for number in (start, stop, step)):
        raise UserError(f"{override.input_line} has no end; give numbers")
    count = math.ceil((stop - start) / step) if step else 0
    if count < 1:
        raise UserError(f"{override.input_line} holds no value; its stop is not part of a range")
    kind = int if all(isinstance(number, int) for number in given) else float
    return kind(start), kind(start + (count - 1) * step)


def _numbers(override: Override, low: Any, high: Any, step: Any, log: bool) -> BaseDistribution:
    """Return the numbers from low to high, both among them; step None: all in between."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{override.input_line} has no end; give numbers")
    if low > high:
        raise UserError(f"{override.input_line} begins above its end; give interval({high}, {low})")
    if log and low <= 0:
        raise UserError(f"{override.input_line}: {low} has no logarithm; begin above 0")
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        step = step or 1
        if log and step != 1:
            raise UserError(f"{override.input_line}: log goes with a step of 1, or with an interval")
        return IntDistribution(low, high, log, step)
    if log and step is not None:
        raise UserError(f"{override.input_line}: log is for an interval, or a range of whole numbers")
    return FloatDistribution(float(low), float(high), log, step if step is None else float(step))


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as overrides; a choice is the text of one already."""
    return [f"{key}={value}" for key, value in params.items()]


def as_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's values as the jobs get them: a choice's text as the number or list that it means."""
    parsed = OverridesParser.create().parse_overrides(as_overrides(params))
    return {key: override.value() for key, override in zip(params, parsed, strict=True)}
