"""A language model: where its weights lie, on which device it computes, its LoRA and its loss."""
