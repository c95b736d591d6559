"""Rows of text: where they come from, how they are tokenised and batched, and what must not be among them."""
