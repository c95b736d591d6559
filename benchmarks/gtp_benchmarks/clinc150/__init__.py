"""Phrase the intents of CLINC150 (Larson et al. 2019, github.com/clinc/oos-eval, CC BY 3.0) as instructions:
a pool of short requests of ten domains, and a benchmark that aims at some of the domains."""

from gtp_benchmarks.clinc150.benchmark import Clinc150Benchmark
from gtp_benchmarks.clinc150.pool import Clinc150Pool

__all__ = ["Clinc150Benchmark", "Clinc150Pool"]
