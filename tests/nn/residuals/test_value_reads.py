"""Readings of a mixer's values apart, against lists of sources in NumPy's terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.types import Inputs
from reslab.models.lm import LanguageModel

DEPTH, WIDTH = 2, 4


def read(sources, parameters):
    """Softmax of products with normalized sources, and their mixture."""
    stacked = jnp.stack(sources)
    size = jnp.sqrt(jnp.mean(stacked**2, -1, keepdims=True) + 1e-6)
    vector = parameters["query"] * (1 + parameters["gain"])
    logits = jnp.einsum("nbld,d->nbl", stacked / size, vector)
    return jnp.einsum("nbl,nbld->bld", jax.nn.softmax(logits, axis=0), stacked)


def expected(x, params, kernels, form):
    """The equations, by lists; `form` is full, delta, released or block."""
    sources = [] if form == "released" else [x]
    total, part = x, None
    for site, (own, kernel) in enumerate(zip(params, kernels, strict=True)):
        seen = list(sources)
        if form == "block" and part is not None and site % 2:
            seen.append(part)
        if form in ("delta", "released") and not site:
            seen = []

        def added(key, seen=seen, total=total, own=own):
            base = total if form in ("delta", "released") else 0.0
            return base + (read(seen, own[key]) if seen else 0.0)

        h = added("read")
        y = tanh_of(h, added("value_read") if site % 2 == 0 else None, kernel)
        total = total + y
        if form == "block":
            part = y if site % 2 == 0 else part + y
            if site % 2:
                sources.append(part)
        else:
            sources.append(y)
    return total if form in ("delta", "released") else read(sources, params[0]["last"])


def tanh_of(h, values, kernel):
    return jnp.tanh(h @ kernel) * (1.0 if values is None else values)


SPECS = {
    "full": "attnres(use_value_read=True)",
    "block": "attnres(use_value_read=True, block_layers=1)",
    "delta": "delta_attnres(use_value_read=True)",
    "released": "delta_attnres(use_value_read=True, is_as_released=True)",
}


@pytest.mark.parametrize("form", SPECS)
def test_equations(x64, form):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape))

    x, cotangent = draw(2, 3, WIDTH), draw(2, 3, WIDTH)
    kernels = draw(2 * DEPTH, WIDTH, WIDTH)
    readers = ("read", "value_read", "last")
    params = [
        {key: {"query": draw(WIDTH), "gain": draw(WIDTH)} for key in readers}
        for _ in kernels
    ]
    fields = {"depth": DEPTH, "sublayers": 2, "param_dtype": jnp.float64}

    def run(x, params, kernels):
        ends = registry.make("residuals", SPECS[form], **fields)
        stream = ends.widen(x).listed()
        for site, (own, kernel) in enumerate(zip(params, kernels, strict=True)):
            kind = ("mixer", "ffn")[site % 2]
            context = fields | {"sublayer": kind, "sublayer_index": site % 2}
            residual = registry.make("residuals", SPECS[form], **context)

            def branch(h, kernel=kernel):
                if not isinstance(h, Inputs):
                    return tanh_of(h, None, kernel)
                return tanh_of(0.5 * (h.query + h.key), h.value, kernel)

            variables = {"params": own}
            stream = residual.apply(variables, stream, branch, site=site)
        last = {"params": {"read": params[0]["last"]}}
        return ends.apply(last, stream, method="narrow")

    def both(function):
        y, pull = jax.vjp(function, x, params, kernels)
        return y, pull(cotangent)

    found = jax.jit(lambda: both(run))()
    wanted = jax.jit(lambda: both(lambda *a: expected(*a, form)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        found,
        wanted,
    )


def test_costs_nothing_when_off_and_is_refused_where_values_are_not_apart():
    def start(**fields):
        model = LanguageModel(vocabulary_size=5, features=8, depth=2, **fields)
        tokens = jnp.zeros((1, 3), jnp.int32)
        return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

    mixer = "attention(heads=2)"
    off = start(mixer=mixer, residual="delta_attnres")
    on = start(mixer=mixer, residual="delta_attnres(use_value_read=True)")
    assert "value_read" not in str(jax.tree.structure(off))
    assert str(jax.tree.structure(on)).count("'value_read'") == 1
    with pytest.raises(ReslabError, match="reads for queries, keys and values apart"):
        start(mixer="gated_delta(heads=2)", residual="attnres(use_value_read=True)")
