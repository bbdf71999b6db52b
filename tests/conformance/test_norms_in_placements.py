"""Any norm in any placement: it trains, or it is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox

ALONE = [
    name
    for name in registry.names("norms")
    if not getattr(registry.module("norms", name).build, "is_activation", False)
]
WITH_ACTIVATION = sorted(set(registry.names("norms")) - set(ALONE))


@pytest.mark.parametrize("placement", registry.names("placements"))
@pytest.mark.parametrize("norm", ALONE)
def test_three_steps(norm, placement, small_model, tokens):
    model = small_model(norm=norm, placement=placement, depth=2)
    params = jax.jit(lambda key: unbox(model.init(key, tokens))["params"])(
        jax.random.key(0)
    )

    @jax.jit
    def step(params):
        def loss(params):
            nll, _ = model.apply(
                {"params": params}, tokens[:, :-1], tokens[:, 1:], method="losses"
            )
            return jnp.mean(nll)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), value

    losses = []
    for _ in range(3):
        params, value = step(params)
        losses.append(float(value))
    assert np.all(np.isfinite(losses))
    assert len(set(losses)) == 3, "nothing was learned"
    for leaf in jax.tree.leaves(params):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("norm", WITH_ACTIVATION)
def test_a_norm_with_an_activation_is_refused(norm, small_model, tokens):
    """It would put a nonlinearity before attention, or on the stream itself."""
    model = small_model(norm=norm, depth=2)
    with pytest.raises(ReslabError, match="contains the activation"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)
    model = small_model(mixer=f"attention(heads=2, qk_norm={norm!r})", depth=2)
    with pytest.raises(ReslabError, match="contains the activation"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_there_are_both_kinds():
    assert len(ALONE) > 10
    assert WITH_ACTIVATION
