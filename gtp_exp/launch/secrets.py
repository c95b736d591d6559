"""Keep keys and tokens out of configurations, which are written into every run's folder and to trackers."""

from __future__ import annotations

import os
import re
from typing import Any

from gtp_exp.config import leaves
from gtp_exp.errors import UserError

_NAMED = re.compile(r"(^|_)(API_?KEY|TOKEN|CREDENTIALS?)(_|$)|(^|_)SECRET|PASSWO?R?D", re.IGNORECASE)
_SHAPED = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b"
)
_SHORTEST = 8  # characters: a shorter value of such a variable ("none", "true") may stand anywhere


def check_no_secrets(values: Any) -> None:
    """Raise UserError, with the key and without the value, for a text that holds a secret.

    Secrets are the values of environment variables whose names say so, and texts of a known shape.
    """
    for path, value in leaves(values):
        if isinstance(value, str) and (what := _secret_in(value)):
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
            raise UserError(
                f"{where.lstrip('.')} holds {what}; it would be written into the run's folder and its "
                "tracker. Leave secrets in the environment or in the libraries' own login "
                "(`hf auth login`, `wandb login`)"
            )


def _secret_in(text: str) -> str | None:
    """Return what kind of secret a text holds, without the secret itself, or None."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMED.search(name) and value in text:
            return f"the value of the environment variable {name}"
    return "what looks like an access token" if _SHAPED.search(text) else None
