"""Compute exact per-example gradients: packed, padded with hooks, or one example at a time."""
