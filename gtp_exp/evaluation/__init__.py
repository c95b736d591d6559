"""Test a model on one task: lm-eval's metrics, and the held-out loss of the right answers beside them."""
