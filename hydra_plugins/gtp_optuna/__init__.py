"""A sweeper for Hydra that searches with Optuna: `hydra/sweeper=optuna`.

Hydra finds sweepers in the package hydra_plugins, which several distributions share, and imports at every
start the files of it whose names begin with no underscore.
"""
