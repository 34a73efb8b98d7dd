"""Training, on any number of ranks; resuming gives bit-identical results."""
