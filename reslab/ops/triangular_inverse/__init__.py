"""Inverses of unit lower triangular matrices, by methods of several kinds."""
