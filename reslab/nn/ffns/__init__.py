"""Ffns: feed-forward layers."""
