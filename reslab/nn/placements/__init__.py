"""Placements: where norms sit around a sublayer."""
