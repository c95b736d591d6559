"""The Python API's functions; `gtp_exp/__init__.py` exports them, and docs/python.md shows each in use."""
