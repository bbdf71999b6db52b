import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.depth_window import DepthWindow
from reslab.ops.attention.api import attention

DEPTH, SITES, WIDTH = 2, 3, 4


def make(**fields):
    given = {"depth": DEPTH, "sublayers": 2, "param_dtype": jnp.float64}
    return DepthWindow(**given | fields)


def drawn(residual, scale=0.5):
    """Parameters of every site, all of them off zero."""
    rng, params = np.random.default_rng(0), []
    x = jnp.zeros((1, 1, WIDTH))
    stream = residual.widen(x).listed()
    start = jax.eval_shape(
        lambda: residual.init(jax.random.key(0), stream, jnp.tanh, site=0)
    )
    for _ in range(SITES):
        params.append(
            jax.tree.map(
                lambda leaf: scale * rng.normal(size=leaf.shape),
                unbox(start)["params"],
            )
        )
    return params


def run(residual, x, params, kernels):
    stream = residual.widen(x).listed()
    for site, (own, kernel) in enumerate(zip(params, kernels, strict=True)):

        def branch(h, kernel=kernel):
            return jnp.tanh(h @ kernel)

        stream = residual.apply({"params": own}, stream, branch, site=site)
    return residual.apply({}, stream, method="narrow")


def oracle(x, params, kernels, window, heads):
    """Every key and value of every state, as the equations have them."""
    states, size = [x], WIDTH // heads
    for own, kernel in zip(params, kernels, strict=True):
        own = own["read"]
        seen = jnp.stack(states[-window:] if window else states, axis=2)
        seen = seen / jnp.sqrt(jnp.mean(seen**2, -1, keepdims=True) + 1e-6)
        seen = seen * (1 + own["gain"][None, None, None])
        query = jnp.einsum("bld,dhk->blhk", seen[:, :, -1], own["query"])
        key = jnp.einsum("blsd,dhk->blshk", seen, own["key"])
        value = jnp.einsum("blsd,dhk->blshk", seen, own["value"])
        scores = jnp.einsum("blhk,blshk->blhs", query, key) / np.sqrt(size)
        mixed = jnp.einsum("blhs,blshk->blhk", jax.nn.softmax(scores, -1), value)
        h = states[-1] + jnp.einsum("blhk,hkd->bld", mixed, own["output"])
        states.append(h + jnp.tanh(h @ kernel))
    return states[-1]


@pytest.mark.parametrize(("window", "heads"), [(2, 1), (0, 2)])
def test_equations_and_gradients(x64, window, heads):
    rng = np.random.default_rng(1)
    x, cotangent = jnp.asarray(rng.normal(size=(2, 2, 3, WIDTH)))
    kernels = jnp.asarray(rng.normal(size=(SITES, WIDTH, WIDTH)) / 3)
    residual = make(window=window, heads=heads)
    given = x, drawn(residual), kernels

    def both(function):
        y, pull = jax.vjp(function, *given)
        return y, pull(cotangent)

    found = jax.jit(lambda: both(lambda *a: run(residual, *a)))()
    wanted = jax.jit(lambda: both(lambda *a: oracle(*a, window, heads)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        found,
        wanted,
    )


def test_is_attention_along_a_sequence_of_states(x64):
    """States laid along the sequence, one program of a causal window for all sites."""
    window, heads, size = 2, 2, WIDTH // 2
    residual = make(window=window, heads=heads)
    own = drawn(residual)[0]["read"]
    states = np.random.default_rng(2).normal(size=(SITES, 1, 5, WIDTH))

    def by_sites(states):
        found = []
        for site in range(SITES):
            stream = residual.widen(states[0]).listed()
            for row in range(1, site + 1):
                stream = stream.write(states[row], row)
            stream = stream.carry(stream=states[site])
            variables = {"params": {"read": own}}
            after = residual.apply(variables, stream, jnp.zeros_like, site=site)
            found.append(after.carried["stream"] - states[site])
        return jnp.swapaxes(jnp.stack(found)[:, 0], 0, 1)

    def by_attention(states):
        rows = jnp.swapaxes(states[:, 0], 0, 1)
        normal = rows / jnp.sqrt(jnp.mean(rows**2, -1, keepdims=True) + 1e-6)
        normal = normal * (1 + own["gain"][None, None])
        parts = (
            jnp.einsum("bsd,dhk->bshk", normal, own[name])
            for name in ("query", "key", "value")
        )
        form = {"scale": size**-0.5, "implementation": "reference"}
        y = attention(*parts, window=window, **form)
        return jnp.einsum("bshk,hkd->bsd", y, own["output"])

    found, wanted = jax.jit(lambda s: (by_sites(s), by_attention(s)))(states)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_refuses_heads_that_do_not_divide():
    residual = DepthWindow(heads=3)
    stream = residual.widen(jnp.zeros((1, 1, 8)))
    with pytest.raises(
        ReslabError, match=r"heads: expected a divisor of the width \(8"
    ):
        residual.init(jax.random.key(0), stream, jnp.tanh, site=0)
