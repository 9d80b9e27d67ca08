"""The controller: a BrickRun becomes jobs, one stage after the other, until its artifacts are there."""
