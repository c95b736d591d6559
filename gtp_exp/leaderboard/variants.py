"""Which settings tell runs of one name apart, and how a label says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from gtp_exp.leaderboard.records import Run

ABSENT = "(absent)"
CLASS = "_target_"  # the key that names a component's class; the keys beside it are the class's options


def variant_labels(
    runs: Sequence[Run],
    names: Sequence[str],
    settings: Mapping[Run, Mapping[str, str]],
    prefixes: Sequence[str],
) -> dict[Run, str]:
    """By run: the settings under `prefixes` that tell it from runs of the same name, as text."""
    labels: dict[Run, str] = {}
    for name in set(names):
        members = [run for run, other in zip(runs, names, strict=True) if other == name]
        own = [{k: v for k, v in settings[run].items() if is_under(k, prefixes)} for run in members]
        groups = alike(members, own)
        kinds = [differing for differing, _ in groups]
        for kind, (_, equal) in zip(kinds, groups, strict=True):
            told = [_told(key, kinds, kind).removeprefix(f"{prefixes[0]}.") for key in _telling(kind, kinds)]
            labels.update({run: ", ".join(told) for run in equal})
    return labels


def alike(
    runs: Sequence[Run], settings: Sequence[Mapping[str, str]]
) -> list[tuple[dict[str, str], list[Run]]]:
    """Runs with equal settings together, each group with the keys that differ among groups."""
    groups: dict[str, list[Run]] = {}
    kinds: dict[str, Mapping[str, str]] = {}
    for run, own in zip(runs, settings, strict=True):
        identity = json.dumps(own, sort_keys=True)
        groups.setdefault(identity, []).append(run)
        kinds[identity] = own
    keys = {key for own in kinds.values() for key in own}
    differing = sorted(k for k in keys if len({own.get(k, ABSENT) for own in kinds.values()}) > 1)
    return [
        ({key: kinds[identity].get(key, ABSENT) for key in differing}, members)
        for identity, members in groups.items()
    ]


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a flat key is one of the prefixes or lies below one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _telling(kind: Mapping[str, str], kinds: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys by which a kind differs from another whose components around the key are of the same classes.

    Two solvers differ in every option that one of them lacks, which their names say already.
    """

    def classes(other: Mapping[str, str], key: str) -> list[str | None]:
        parts = key.removesuffix(f".{CLASS}").split(".")[:-1]
        return [other.get(".".join([*parts[:n], CLASS])) for n in range(1, len(parts) + 1)]

    return [
        key
        for key in kind
        if any(other[key] != kind[key] and classes(other, key) == classes(kind, key) for other in kinds)
    ]


def _told(key: str, kinds: Sequence[Mapping[str, str]], kind: Mapping[str, str]) -> str:
    """`solver.ridge=0.1`; a class by its own name, `solver=OMP`, unless two of the kinds share that name."""
    values = {other[key] for other in kinds}
    if not key.endswith(f".{CLASS}") or len({value.split(".")[-1] for value in values}) < len(values):
        return f"{key}={kind[key]}"
    return f"{key.removesuffix(f'.{CLASS}')}={kind[key].split('.')[-1]}"
