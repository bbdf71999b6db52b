"""Distance of a convolution from an orthogonal map."""
