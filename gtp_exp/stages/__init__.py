"""The cached stages of a job: warm-up, gradients, selection, fine-tuning, evaluation and validation.

Each is a function that names what its stage reads, which is the key of the cache entry, and how the entry is
made; it returns where the entry lies and opens none of its files, so that a cache that makes nothing can be
asked the same questions. What stands in an entry is read by `read_...` and `check_...`.
"""
