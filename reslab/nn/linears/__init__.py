"""Linears: what a projection is."""
