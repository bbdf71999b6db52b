"""Shared pieces of optimizers."""
