"""Attention to what a layer has put out for earlier tokens."""
