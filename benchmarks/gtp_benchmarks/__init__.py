"""Benchmarks that ship with the project: data generators, task definitions, performance scripts."""
