"""Bricks: from a folder of films to a fine-tuned text-to-video model. docs/house.md says which package holds what."""
