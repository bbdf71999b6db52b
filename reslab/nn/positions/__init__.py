"""Positions: where a token stands."""
