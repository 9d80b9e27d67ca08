"""Noise in and noise out: the schedule, the training loss, guidance, and sampling a video from a prompt."""
