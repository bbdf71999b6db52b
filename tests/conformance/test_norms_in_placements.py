"""Any norm in any placement: it trains, or it is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS, model_state_of
from reslab.nn.base.norm import needs_batch

ALONE = [
    name
    for name in registry.names("norms")
    if not getattr(registry.module("norms", name).build, "is_activation", False)
]
WITH_ACTIVATION = sorted(set(registry.names("norms")) - set(ALONE))
# These put norms inside the sublayers, which know of no padding.
REFUSED = {
    (norm, placement)
    for norm in filter(needs_batch, ALONE)
    for placement in ("sub_ln", "hybrid", "hybrid_star", "pre_activation")
}


PLACEMENTS = registry.names("placements")
PAIRS = [(norm, placement) for norm in ALONE for placement in PLACEMENTS]
# Every norm once, and every placement at least once.
SOME = {(norm, PLACEMENTS[index % len(PLACEMENTS)]) for index, norm in enumerate(ALONE)}


@pytest.mark.parametrize(
    ("norm", "placement"),
    [
        pytest.param(*pair, marks=() if pair in SOME else pytest.mark.exhaustive)
        for pair in PAIRS
    ],
)
def test_three_steps(norm, placement, small_model, drawn, tokens):
    model = small_model(norm=norm, placement=placement, depth=2, ffn="gelu(hidden=16)")
    if (norm, placement) in REFUSED:
        with pytest.raises(ReslabError, match="takes statistics of a batch"):
            jax.eval_shape(model.init, jax.random.key(0), tokens)
        return
    variables = drawn(model, tokens)
    state = model_state_of(variables)
    tree = {"params": variables["params"], GRADIENT_STATS: state.get(GRADIENT_STATS)}

    @jax.jit
    def step(tree, batch_stats):
        def loss(tree, batch_stats):
            state = {BATCH_STATS: batch_stats, GRADIENT_STATS: tree[GRADIENT_STATS]}
            (nll, _), written = model.apply(
                {"params": tree["params"], **model_state_of(state)},
                tokens[:, :-1],
                tokens[:, 1:],
                segments=jnp.ones_like(tokens[:, 1:]),
                method="losses",
                mutable=[BATCH_STATS],
            )
            return jnp.mean(nll), written.get(BATCH_STATS, {})

        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(
            tree, batch_stats
        )
        params = jax.tree.map(
            lambda p, g: p - 0.05 * g, tree["params"], gradient["params"]
        )
        return gradient | {"params": params}, batch_stats, value

    losses, batch_stats = [], state.get(BATCH_STATS, {})
    for _ in range(3):
        tree, batch_stats, value = step(tree, batch_stats)
        losses.append(float(value))
    assert np.all(np.isfinite(losses))
    assert len(set(losses)) == 3, "nothing was learned"
    for leaf in jax.tree.leaves((tree, batch_stats)):
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
