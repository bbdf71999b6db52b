"""Optimizers outside of reslab: by their names, as optax has them."""

import importlib

import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_each_has_its_name(name):
    module = importlib.import_module(f"reslab.optim.{name}")
    assert getattr(module, name) is module.build
    assert module.build.__name__ == name


def test_the_loss_that_importance_sparse_needs_is_named():
    made = registry.make("optimizers", "importance_sparse", learning_rate=0.1)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ReslabError, match=r"try: update\(.*value_fn=loss\)"):
        made.update(params, made.init(params), params)
