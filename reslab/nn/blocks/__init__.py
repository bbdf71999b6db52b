"""Blocks: how sublayers form a layer."""
