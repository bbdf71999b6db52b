import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.residuals.ddl import DeepDeltaLearning, DeltaUpdate, Reading


def columns(x):
    """A state (..., features, values) of the golden files as columns."""
    return tuple(jnp.moveaxis(x, -1, 0))


def part(data, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in data.items()
        if key.startswith(prefix)
    }


def compare(function, data):
    """Output and gradients by all inputs and parameters."""
    names = [key for key in data if f"grad_{key}" in data]

    @jax.jit
    def run(given, cotangent):
        y, pull = jax.vjp(function, given)
        return y, pull(cotangent)[0]

    y, gradient = run({name: data[name] for name in names}, data["cot"])
    pairs = [(y, "out")]
    pairs += [(gradient[name], f"grad_{name}") for name in names]
    for actual, key in pairs:
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7, err_msg=key)


FORMS = {"v1lin": "affine", "paper_v1": "linear", "paper_v4": "linear"}


@pytest.mark.parametrize("form", ["v1", "v1lin", "v4", "paper_v1", "paper_v4"])
def test_golden_of_the_update(golden, x64, form):
    data = part(golden("ddl"), f"{form}_")
    is_paper, is_one = form.startswith("paper"), form.startswith("v1")
    update = DeltaUpdate(form=FORMS.get(form, "sigmoid"), param_dtype=jnp.float64)

    def function(given):
        if is_paper:
            state, reading = columns(given["X"]), given["context"]
            params = {
                "gate_projection": given["p_w_beta"][:, None],
                "gate_bias": given["p_b_beta"],
                "value_projection": given["p_Wv"].T,
            }
        else:
            state = (given["x"],) if is_one else columns(given["X"])
            reading = state[0] if is_one else given["v_in"]
            params = {
                "gate_projection": given["p_beta_weight"].T,
                "gate_bias": given["p_beta_bias"],
                "value_projection": given["p_v_proj_weight"].T,
                "value_bias": given["p_v_proj_bias"],
            }
        new = update.apply(
            {"params": params}, state, given["k_in"], given["context"], reading
        )
        return new[0] if is_one else jnp.stack(new, axis=-1)

    compare(function, data)


@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-7, 0.0])
def test_small_directions_are_not_blown_up(x64, size):
    """By the equation: the authors' directions are too long for its epsilon."""
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 2, 3, 16))
    direction = size * rng.normal(size=(2, 3, 16)) / 4
    gate, value = rng.normal(size=(2, 16))
    params = {
        "gate_projection": gate[:, None],
        "gate_bias": np.array([0.3]),
        "value_projection": value[:, None],
    }
    update = DeltaUpdate(param_dtype=jnp.float64)

    def run(direction):
        return update.apply({"params": params}, (x,), direction, context, x)[0]

    squares = np.sum(direction**2, -1, keepdims=True)
    assert np.all(squares < 10 * 1e-5**2)  # So that k_eps is not to be overlooked.
    k = direction / np.sqrt(squares + 1e-5**2)
    beta = 2 / (1 + np.exp(-(context @ gate + 0.3)[..., None]))
    held = np.sum(k * x, -1, keepdims=True)
    wanted = x + beta * k * ((context @ value)[..., None] - held)
    found, pull = jax.vjp(run, jnp.asarray(direction))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert np.all(np.isfinite(pull(np.ones_like(x))[0]))


def test_golden_of_the_reading(golden, x64):
    reading = Reading(param_dtype=jnp.float64)

    def read(given):
        params = {"weights": given["p_c"].T}
        return reading.apply({"params": params}, columns(given["X"]))

    compare(read, part(golden("ddl"), "paper_compressCC_"))
    # What the code's two factors come to.
    data = part(golden("ddl"), "compress_code_")
    y = read({"p_c": data["weff"], "X": data["X"]})
    np.testing.assert_allclose(y, data["out"], rtol=1e-7, atol=1e-7)


def updated(state, direction, beta, wanted):
    """One update with gates and values that do not depend on the context."""
    features, values = state.shape[-2:]
    params = {
        "gate_projection": np.zeros((features, 1)),
        "gate_bias": np.full(1, -np.log(2 / beta - 1) if 0 < beta < 2 else 0.0),
        "value_projection": np.zeros((features, values)),
        "value_bias": -np.log(4 / wanted - 1) if wanted is not None else None,
    }
    if beta in (0, 2):
        params["gate_bias"] = np.full(1, -800.0 if beta == 0 else 800.0)
    form = "sigmoid" if wanted is not None else "linear"
    context = np.zeros(state.shape[:-1])
    new = DeltaUpdate(form=form, param_dtype=jnp.float64).apply(
        {"params": {k: v for k, v in params.items() if v is not None}},
        columns(state),
        direction,
        context,
        context,
    )
    return np.stack(new, axis=-1)


def test_keeps_overwrites_or_reflects_one_direction(x64):
    rng = np.random.default_rng(0)
    state, direction = rng.normal(size=(2, 3, 8, 4)), rng.normal(size=(2, 3, 8))
    k = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    wanted = rng.uniform(0.5, 3.5, size=4)

    def held(state):
        return np.einsum("bld,bldv->blv", k, state)

    np.testing.assert_allclose(updated(state, direction, 0, wanted), state, atol=1e-12)
    full = updated(state, direction, 1, wanted)
    np.testing.assert_allclose(
        held(full), np.broadcast_to(wanted, (2, 3, 4)), atol=1e-8
    )
    for beta in (0.3, 1.7):
        after = held(updated(state, direction, beta, wanted)) - wanted
        np.testing.assert_allclose(
            after, (1 - beta) * (held(state) - wanted), atol=1e-8
        )
    mirrored = updated(state, direction, 2, None)
    np.testing.assert_allclose(held(mirrored), -held(state), atol=1e-8)
    np.testing.assert_allclose(
        np.linalg.norm(mirrored, axis=-2), np.linalg.norm(state, axis=-2), rtol=1e-8
    )


@pytest.mark.parametrize("values", [1, 3])
def test_starts_as_plain_where_the_delta_rule_has_no_share(x64, values):
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(2, 3, 8)), rng.normal(size=(3, 8, 8))
    residual = DeepDeltaLearning(values=values, blend=0.0, param_dtype=jnp.float64)
    assert residual.reduces_to_plain_at_init
    assert not DeepDeltaLearning().reduces_to_plain_at_init

    @jax.jit
    def run(x):
        stream, key = residual.widen(x), jax.random.key(0)
        for site, kernel in enumerate(kernels):
            stream, _ = residual.init_with_output(
                key, stream, lambda h, w=kernel: jnp.tanh(h @ w), site=site
            )
        return residual.init_with_output(key, stream, method="narrow")[0]

    wanted = x
    for kernel in kernels:
        wanted = wanted + np.tanh(wanted @ kernel)
    np.testing.assert_allclose(run(x), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": 0}, "values: expected at least 1 and at most 256; got 0"),
        ({"form": "lineal"}, "form: expected 'linear', 'sigmoid' or 'affine'; got"),
    ],
)
def test_refuses_what_does_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        DeepDeltaLearning(**fields)
