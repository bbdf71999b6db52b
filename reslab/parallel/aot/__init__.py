"""Programs compiled ahead of time for an absent TPU, and what they cost."""
