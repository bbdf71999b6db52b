"""A residual addition and the norm that reads its sum, in one pass."""
