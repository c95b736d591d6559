"""Exact per-example gradients along a training trajectory, sketched and stored."""
