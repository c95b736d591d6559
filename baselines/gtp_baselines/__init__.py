"""Competitors of GTP: one file each, reached only by `_target_` from conf/selector."""
