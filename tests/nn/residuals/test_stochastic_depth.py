import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.randomness import DROPOUT, training_key
from reslab.core.taps import TAPS
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.residuals._single import SingleStream
from reslab.nn.residuals.stochastic_depth import StochasticDepth
from reslab.parallel.mesh import batch_sharding, make_mesh, use_mesh


def dropped(residual, x, key, site):
    return residual.apply({}, x, jnp.ones_like, site=site, rngs={DROPOUT: key}) - x


@pytest.mark.parametrize("site", [0, 5])
def test_drops_whole_rows_as_often_as_it_should_and_is_unbiased(site):
    residual = StochasticDepth(rate=0.6, depth=3)
    x = jnp.zeros((4000, 2, 3))
    written = np.asarray(dropped(residual, x, jax.random.key(0), site))
    survival = 1 - 0.6 * (site + 1) / 6
    one = written[:, :1, :1]
    np.testing.assert_array_equal(written, np.broadcast_to(one, written.shape))
    is_kept = one[:, 0, 0] > 0
    np.testing.assert_allclose(one[is_kept], 1 / survival, rtol=1e-6)
    # Three standard deviations of 4,000 draws.
    assert abs(is_kept.mean() - survival) < 3 * np.sqrt(0.25 / 4000)
    assert abs(written.mean() - 1) < 3 * np.sqrt((1 / survival - 1) / 4000)


def test_is_plain_without_a_key_or_a_rate():
    x = jax.random.normal(jax.random.key(0), (3, 2, 4))
    wanted = x + jnp.tanh(x)
    y = StochasticDepth(rate=0.9).apply({}, x, jnp.tanh, site=1)
    np.testing.assert_array_equal(y, wanted)
    rngs = {DROPOUT: jax.random.key(0)}
    y = StochasticDepth(rate=0.0).apply({}, x, jnp.tanh, site=1, rngs=rngs)
    np.testing.assert_array_equal(y, wanted)


TOKENS = np.random.default_rng(0).integers(0, 13, (8, 4), dtype=np.int32)


def model(**fields):
    return LanguageModel(
        vocabulary_size=13,
        features=8,
        depth=3,
        mixer="attention(heads=2)",
        residual="stochastic_depth(rate=0.8)",
        **fields,
    )


@pytest.fixture(scope="module")
def params():
    return unbox(jax.jit(model().init)(jax.random.key(0), TOKENS))["params"]


def logits(params, seed, **fields):
    run = jax.jit(model(**fields).apply)
    return run({"params": params}, TOKENS, rngs={DROPOUT: jax.random.key(seed)})


@pytest.mark.conformance
def test_draws_the_same_in_every_form_of_the_loop(params):
    wanted = logits(params, 1)
    assert np.max(np.abs(wanted - logits(params, 2))) > 0.01
    for fields in ({"is_unrolled": True}, {"remat": "full"}):
        np.testing.assert_allclose(logits(params, 1, **fields), wanted, atol=1e-5)


class Drawing(SingleStream):
    """Plain, and shows the key that it is given."""

    def __call__(self, stream, branch, *, site):
        key = training_key(self)
        self.sow(TAPS, "key", jax.random.key_data(key))
        return stream + branch(stream)


def test_every_sublayer_in_every_pass_has_a_key_of_its_own(params):
    looped = model(stack="looped(loops=2)").clone(residual=Drawing)
    _, seen = jax.jit(lambda p, k: looped.apply(p, TOKENS, rngs=k, mutable=[TAPS]))(
        {"params": params}, {DROPOUT: jax.random.key(0)}
    )
    keys = [np.asarray(k).reshape(-1, 2) for k in jax.tree.leaves(seen)]
    assert len({tuple(key) for key in np.concatenate(keys)}) == 2 * 3 * 2


def test_on_eight_devices_is_on_one(params):
    wanted = logits(params, 1)
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    with use_mesh(mesh):
        tokens = jax.device_put(TOKENS, batch_sharding(mesh))
        found = jax.jit(model().apply)(
            {"params": params}, tokens, rngs={DROPOUT: jax.random.key(1)}
        )
    assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_refuses_a_rate_out_of_range(rate):
    with pytest.raises(ReslabError, match="rate: expected at least 0 and below 1"):
        StochasticDepth(rate=rate)


class DrawingFeedForward(nn.Module):
    """Draws random numbers, if it may."""

    @nn.compact
    def __call__(self, x):
        training_key(self)
        return x


def test_drawing_is_refused_where_layers_are_undone():
    undone = model(block="reversible", ffn=DrawingFeedForward).clone(
        residual="reversible"
    )
    variables = unbox(jax.eval_shape(undone.init, jax.random.key(0), TOKENS))
    jax.eval_shape(undone.apply, variables, TOKENS)
    rngs = {DROPOUT: jax.random.key(0)}
    with pytest.raises(ReslabError, match="none within a backward pass that undoes"):
        jax.eval_shape(lambda v: undone.apply(v, TOKENS, rngs=rngs), variables)
