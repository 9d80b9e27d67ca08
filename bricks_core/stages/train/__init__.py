"""Train: a network learns to denoise the latents of clips. Open stage.py first."""
