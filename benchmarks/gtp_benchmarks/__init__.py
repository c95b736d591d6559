"""Hold the benchmarks that ship with the project: generated data, test tasks and performance scripts."""
