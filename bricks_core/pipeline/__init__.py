"""A run on one machine: what is to be done, doing it, and telling what came of it."""
