"""Records of runs: results.json, and the chosen rows beside it.

The package can be called: `gtp_exp.results(folder)` is the Python API's table of runs. Importing a module of
this package binds the package itself to the name `gtp_exp.results`, so no function could keep that name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Table(ModuleType):
    """Make the package answer a call by the table of runs."""

    def __call__(self, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        from gtp_exp.api.table import results

        return results(*arguments, **named)


sys.modules[__name__].__class__ = _Table
