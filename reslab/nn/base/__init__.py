"""Shared pieces of the parts of a model."""
