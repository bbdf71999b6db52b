import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from reslab.core import trees
from reslab.core.errors import ReslabError

TREE = {"a": {"gain": jnp.ones(3), "kernel": jnp.ones((2, 3), jnp.bfloat16)}}


def test_names_and_counts():
    assert list(trees.named_leaves(TREE)) == ["a/gain", "a/kernel"]
    assert trees.count_parameters(TREE) == 9
    assert trees.count_bytes(TREE) == 3 * 4 + 6 * 2
    shapes = trees.map_named(lambda name, leaf: (name, leaf.shape), TREE)
    assert shapes["a"]["kernel"] == ("a/kernel", (2, 3))


def test_first_match_decides():
    groups = trees.first_match(["a/gain", "b/gain"], [("^a", 1), ("gain", 2)], 0)
    assert groups == {"a/gain": 1, "b/gain": 2}


@pytest.mark.parametrize("pattern", ["nothing", "("])
def test_patterns_that_cannot_be_meant(pattern):
    with pytest.raises(ReslabError, match="parameter group"):
        trees.first_match(["a/gain"], [(pattern, 1)], 0)


def test_unbox_keeps_abstract_values():
    box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((2,), jnp.float32), ("embed",))
    assert trees.unbox({"x": box})["x"].shape == (2,)
