"""The ways to differentiate: packed, padded with hooks, or one example at a time."""
