"""SVFormer: all layers read the first layer's values (Zhou et al., 2024)."""

from collections.abc import Collection
from typing import ClassVar

from reslab.nn.value_paths.shared_kv import SharedKeysValues


class SharedValues(SharedKeysValues):
    """Reads the values of the nearest earlier layer that leads, under its own keys.

        y[t] = sum_(s <= t) softmax_s(q[t] . k[s]) v_leader[s]

    Where all layers have this path, the first leads and the others have neither a
    kernel of values nor a cache for them: the paper's SVFormer, with half the cache
    and one layer's values. As in `shared_kv`,
    others may lead by `is_leader`.

    Reference: Zhou et al., 2024, https://arxiv.org/abs/2410.17897, Section 3.3
    (SVFormer). Tested by its properties; no output of the authors' code.

    Attributes:
      (those of `SharedKeysValues`)
    """

    takes: ClassVar[Collection[str]] = ("value",)


build = SharedValues
