"""How long stages took in finished runs of this machine, by how much passed through them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gtp_exp.errors import UserError
from gtp_exp.estimate.parts import Parts
from gtp_exp.estimate.runs import Job
from gtp_exp.estimate.walk import Work, plan


@dataclass(frozen=True)
class Rate:
    """Holds units and seconds of finished stages."""

    units: float
    seconds: float
    runs: frozenset[str]

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.units + other.units, self.seconds + other.seconds, self.runs | other.runs)


def measured_rates(parts: Parts, jobs: Sequence[Job]) -> dict[str, Rate]:
    """Return rates by name, from finished runs of the jobs' models; a stage that runs shared counts once."""
    rates: dict[str, Rate] = {}
    seen: set[str] = set()
    for run in parts.runs:
        job = run.record.config
        if not any(job.get("model") == other["model"] for other in jobs):
            continue
        with contextlib.suppress(KeyError, TypeError, UserError):  # an older form of the configuration
            planned = plan([job], parts, share_passes=False)
            for stage, cost in run.record.stages.items():
                works = planned.of(stage)
                units = sum(work.units or 0.0 for work in works)
                if units and cost.seconds > 0 and cost.key not in seen:
                    seen.add(cost.key)
                    rate = Rate(units, cost.seconds, frozenset({run.name}))
                    same = all(work.rates == works[0].rates for work in works)
                    for name in works[0].rates if same else works[0].rates[:1]:
                        rates[name] = rates[name] + rate if name in rates else rate
    return rates


def price(work: Work, rates: Mapping[str, Rate]) -> tuple[float, Rate] | None:
    """Return seconds at the closest measured rate, and that rate; None without one."""
    rate = next((rates[name] for name in work.rates if name in rates), None)
    return None if work.units is None or rate is None else (work.units * rate.seconds / rate.units, rate)
