"""Tell which address of a run's page may be kept and shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def public_address(text: object) -> str | None:
    """Return an https address without account, query and fragment, which may hold a key; None for anything
    else."""
    if not isinstance(text, str) or not text.isprintable():
        return None
    try:
        parts = urlsplit(text.strip())
        host = parts.hostname and f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return None
    if parts.scheme != "https" or not host:
        return None
    return urlunsplit(("https", host, parts.path, "", ""))
