"""Clip: videos become single-shot clips. Open stage.py first."""
