"""Several residual streams, written, mixed and read in one pass."""
