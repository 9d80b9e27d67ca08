"""Checkpoints of Open-Sora and diffusers, in and out."""
