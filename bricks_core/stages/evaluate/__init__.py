"""Evaluate: what the checkpoints make of the same prompts, and a page that shows the whole run."""
