"""Training on several nodes: meeting, being fit for it, and ending with the right exit code."""
