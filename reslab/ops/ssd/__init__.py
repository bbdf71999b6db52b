"""Linear attention with a decay per head: one function, several forms."""
