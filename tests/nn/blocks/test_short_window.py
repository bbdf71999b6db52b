import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel

SHORT = "attention(heads=2, window=2)"
SPEC = f"short_window(short='{SHORT}')"
PARTS = {"mixer": "attention(heads=2)", "ffn": "swiglu(hidden=12)"}


def test_equation(make_block, apply_block, parts, features):
    block, params = make_block(SPEC, **PARTS)
    norm, mix, feed = parts(params)
    _, short, _ = parts({"mixer": params["short"]}, mixer=SHORT)
    wanted = features + short(norm("short", features))
    wanted = wanted + mix(norm("mixer", wanted))
    wanted = wanted + feed("ffn", norm("ffn", wanted))
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_window_of_one_token_adds_its_values(make_block, apply_block, features):
    """Softmax over one token is one."""
    name = "short_window(short='attention(heads=2, window=1)')"
    block, params = make_block(name, mixer="attention(heads=2)", ffn="gelu(hidden=4)")
    params = params | {
        part: jax.tree.map(np.zeros_like, params[part]) for part in ("mixer", "ffn")
    }
    gain = params["short_placement"]["input_norm"]["gain"]
    size = np.sqrt(np.mean(features**2, -1, keepdims=True) + 1e-6)
    value, output = (params["short"][n]["kernel"] for n in ("value", "output"))
    h = np.einsum("bld,dhk->blhk", features / size * (1 + gain), value)
    wanted = features + np.einsum("blhk,hkd->bld", h, output)
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_counts_three_sublayers_and_the_short_products():
    def make(spec):
        context = Context()
        return registry.unbound("blocks", spec, context=context, **PARTS)

    block, standard = make(SPEC), make("standard")
    assert block.sublayers == 3
    more = block.mixing_flops(64, 8) - standard.mixing_flops(64, 8)
    assert more == 4 * 2 * 8  # Scores and values over two tokens.


def test_refuses_what_leaves_values_for_later_layers():
    short = 'attention(value_path="value_residual")'
    block = registry.unbound("blocks", "short_window", short=short, context=Context())
    with pytest.raises(
        ReslabError, match="short: expected a mixer that leaves nothing"
    ):
        block.init_state(1, 4, 8)


@pytest.mark.conformance
def test_whole_is_prefill_and_one_token_at_a_time():
    parts = {"mixer": "gated_delta(heads=2)", "ffn": "gelu(hidden=8)"}
    residual = "ddl(values=2, expansion=2, taps=2)"
    model = LanguageModel(
        vocabulary_size=7, features=8, depth=2, block=SPEC, residual=residual, **parts
    )
    tokens = np.random.default_rng(0).integers(7, size=(2, 6))
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    places = jnp.broadcast_to(jnp.arange(6), (2, 6))

    @jax.jit
    def run(tokens, positions, state):
        given = {"positions": positions, "state": state, "method": "hidden"}
        return model.apply({"params": params}, tokens, **given)

    whole, _ = run(tokens, places, None)
    state, found = model.init_state(2, 6), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)):
        y, state = run(tokens[:, part], places[:, part], state)
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-5)
