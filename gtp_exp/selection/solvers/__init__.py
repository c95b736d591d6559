"""Solvers of one pursuit: CoSaMP, orthogonal matching pursuit, elastic net, non-negative least squares."""
