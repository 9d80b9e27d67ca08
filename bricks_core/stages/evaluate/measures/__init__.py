"""What is measured of samples: a file each, pure functions of arrays."""
