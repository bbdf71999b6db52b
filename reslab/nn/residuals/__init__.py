"""Residuals: how sublayers read from and write to the depth stream."""
