"""Compute exact per-example gradients along a training trajectory, sketch and store them."""
