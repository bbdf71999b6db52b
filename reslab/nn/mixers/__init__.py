"""Mixers: token mixers along the sequence."""
