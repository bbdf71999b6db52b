"""Scalings: how the learning rate of a parameter depends on where and what it is.

A scaling's `build` takes its options and returns a rule
`rule(name, layout, depth) -> Scale`, which sees the path of a parameter, the meaning
of its axes and the number of layers of the model.
"""
