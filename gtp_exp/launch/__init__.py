"""Start a job's processes, keep their limits, watch their progress, keep secrets out, and explain faults of
the disk."""
