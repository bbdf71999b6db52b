"""How far a convolution is from an orthogonal map."""
