"""Wrong shapes raise where they would otherwise broadcast or fail far away."""

import jax
import jax.numpy as jnp
import pytest

from reslab.nn.base.history import History
from reslab.ops.depth_attention.reference import merge
from reslab.ops.grams import patch_gram
from reslab.ops.orthogonality.api import convolution_orthogonality
from reslab.optim.orthogonalization import KELLER, orthogonalized

X = jnp.ones((2, 3, 4))
QUERY = jnp.ones(4)
CALLS = {
    "a logarithm that broadcasts": lambda: merge(X, jnp.ones((1, 3)), X, QUERY),
    "a source of another batch": lambda: merge(X, jnp.ones((2, 3)), X[:1], QUERY),
    "a source of another length": lambda: History.start(X, 2).write(X[:, :1], 1),
    "a source beside a list": lambda: History.start(X, 2).listed().write(X[0], 1),
    "a kernel that is no square": lambda: convolution_orthogonality(
        jnp.ones((3, 1, 4, 4)), 1
    ),
    "images without channels": lambda: patch_gram(X, (1, 1), (1, 1)),
    "a vector to orthogonalize": lambda: orthogonalized(QUERY, (KELLER,)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_shapes_are_named(call):
    with pytest.raises(AssertionError, match=r"shape|rank"):
        jax.eval_shape(call)
