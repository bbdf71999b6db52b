"""Attention along depth: one token reads what earlier sublayers wrote for it."""
