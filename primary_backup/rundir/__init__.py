"""The run directory: the lock, the order of transitions, and what is stored between them."""
