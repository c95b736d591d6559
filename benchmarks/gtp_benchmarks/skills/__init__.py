"""Generate the built-in data: small skills with exact answers, a pool with planted faults, their
benchmark."""

from gtp_benchmarks.skills.benchmark import SkillsBenchmark
from gtp_benchmarks.skills.pool import SkillsPool

__all__ = ["SkillsBenchmark", "SkillsPool"]
