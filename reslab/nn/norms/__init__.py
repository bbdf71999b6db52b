"""Norms: x -> x, same shape and dtype."""
