"""Fine-tuning with transformers.Trainer: settings, batches, checkpoints to resume from."""
