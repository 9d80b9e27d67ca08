"""Entry points: flags in, exit code out, nothing else. Nothing imports this package."""
