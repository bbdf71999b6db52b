import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.mixers.attention import Attention
from reslab.nn.mixers.latent_attention import LatentAttention
from reslab.nn.positions.alibi import LinearBias

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def test_golden():
    with np.load(GOLDENS / "recurrent_transformer.npz") as file:
        wanted = np.tril(file["dev_attention_bias_alibi_only"][0])
    place = np.arange(16)
    slopes = LinearBias().slopes(2)
    found = np.tril((place[None] - place[:, None]) * np.asarray(slopes)[:, None, None])
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_attention_by_hand(x64):
    x = np.random.default_rng(0).normal(size=(1, 6, 8))
    module = Attention(heads=2, position="alibi", **DOUBLE)
    params = module.init(jax.random.key(0), x, positions=places(x))["params"]
    y = module.apply({"params": params}, x, positions=places(x))[0]
    query, key, value = (
        np.einsum("td,dhe->hte", x[0], params[name]["kernel"])
        for name in ("query", "key", "value")
    )
    apart = np.arange(6)[None] - np.arange(6)[:, None]
    scores = (
        query @ np.swapaxes(key, 1, 2) / 2
        + np.array([2**-4, 2**-8])[:, None, None] * apart
    )
    scores = np.where(apart > 0, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    read = weights / weights.sum(-1, keepdims=True) @ value
    wanted = np.einsum("hte,hed->td", read, params["output"]["kernel"])
    np.testing.assert_allclose(y[0], wanted, atol=1e-12)


@pytest.mark.parametrize(
    "build", [Attention, lambda **f: Attention(window=3, **f), LatentAttention]
)
def test_decoding_is_the_whole(build, x64):
    x = np.random.default_rng(0).normal(size=(2, 7, 8))
    module = build(heads=2, position="alibi", **DOUBLE)
    variables = module.init(jax.random.key(0), x, positions=places(x))
    wanted = module.apply(variables, x, positions=places(x))[0]
    state, parts = module.init_state(2, 9, 8), []
    run = jax.jit(module.apply)
    for t in ((0, 4), (4, 5), (5, 6), (6, 7)):
        part = slice(*t)
        y, _, state = run(
            variables, x[:, part], positions=places(x)[:, part], state=state
        )
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), wanted, atol=1e-12)
