"""Fine-tune with transformers.Trainer: settings, batches, checkpoints to resume from."""
