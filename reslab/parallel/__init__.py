"""Devices as a mesh, and logical axes mapped to it."""
