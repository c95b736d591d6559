"""Select instruction data by Gradient Trajectory Pursuit, fine-tune, evaluate, rank: the Python API.

docs/python.md shows each function in use. Each public name is imported when it is first used, so that
`import gtp_exp` brings neither torch nor Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtp_exp.api.collection import collect
    from gtp_exp.api.jobs import run
    from gtp_exp.api.selection import select
    from gtp_exp.api.table import results
    from gtp_exp.errors import UserError
    from gtp_exp.gradients.store import GradientStore
    from gtp_exp.selection.gtp import GTP

__version__ = "0.1.0"
__all__ = ["GTP", "GradientStore", "UserError", "collect", "results", "run", "select"]

_HOMES = {
    "GTP": "gtp_exp.selection.gtp",
    "GradientStore": "gtp_exp.gradients.store",
    "UserError": "gtp_exp.errors",
    "collect": "gtp_exp.api.collection",
    "run": "gtp_exp.api.jobs",
    "select": "gtp_exp.api.selection",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name == "results":  # the folder of this name can be called: importing it anywhere puts it here
        return importlib.import_module("gtp_exp.results")
    if name not in _HOMES:
        raise AttributeError(f"module 'gtp_exp' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too, for completion, before they are imported."""
    return sorted({*globals(), *__all__})
