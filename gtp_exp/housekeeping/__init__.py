"""Look after the stage cache: what is in it, which runs use it, and what can go."""
