"""Which objective predicts the loss after training: many subsets of one pool, one collection of gradients."""
