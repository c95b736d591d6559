"""Load a language model and compute its loss: where its weights lie, its device, its LoRA."""
