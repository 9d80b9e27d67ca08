"""Videos from a model and words: the work behind `bricks generate`."""
