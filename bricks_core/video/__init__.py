"""Films: looked at, read, written, and brought to a bucket's size. Nothing here knows a stage or a store."""
