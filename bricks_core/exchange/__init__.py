"""What comes from other tools and goes to them: checkpoints and data sets in their formats."""
