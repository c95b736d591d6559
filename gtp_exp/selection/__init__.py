"""Selectors: their contract, and Gradient Trajectory Pursuit."""
