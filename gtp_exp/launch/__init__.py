"""The start of a job's processes: their limits, signs of life, secrets that stay out, faults of the disk."""
