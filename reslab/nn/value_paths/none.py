"""No value path: every layer's keys and values are its own."""

from reslab.nn.value_paths._path import ValuePath


class OwnValues(ValuePath):
    """Leaves every layer with its own keys and values.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Section 3.2.
    """


build = OwnValues
