import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.manhattan import Manhattan

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
HEADS, SIZE, WIDTH = 2, 8, 16


def converted(get, offset):
    """The authors' parameters, whose rotated pairs are neighbours."""
    del offset
    pairs = np.concatenate([np.arange(0, SIZE, 2), np.arange(1, SIZE, 2)])

    def heads(name, order=slice(None)):
        kernel = get(f"{name}_proj.weight").T.reshape(WIDTH, HEADS, SIZE)
        bias = get(f"{name}_proj.bias").reshape(HEADS, SIZE)
        return {"kernel": kernel[..., order], "bias": bias[..., order]}

    taps = get("lepe.conv.weight")[:, 0].transpose(1, 2, 0)
    return {
        "query": heads("q", pairs),
        "key": heads("k", pairs),
        "value": heads("v"),
        "near_taps": taps.reshape(5, 5, HEADS, SIZE),
        "near_bias": get("lepe.conv.bias").reshape(HEADS, SIZE),
        "output": {
            "kernel": get("out_proj.weight").T.reshape(HEADS, SIZE, WIDTH),
            "bias": get("out_proj.bias"),
        },
    }


@pytest.mark.parametrize(("form", "tag"), [("full", "full"), ("axes", "decomposed")])
def test_golden(golden, assert_golden, form, tag):
    arrays = golden("rmt", "dev_")
    flat = {
        name.replace(f"_{tag}_", "_", 1): array
        for name, array in arrays.items()
        if name.startswith(("in_", f"grad_{tag}_", f"out_{tag}_", f"cot_{tag}_"))
    }
    grid = arrays["in_x"].shape[1:3]
    for name in ("in_x", "grad_x", f"out_{tag}", f"cot_{tag}"):
        flat[name] = flat[name].reshape(2, -1, WIDTH)
    module = Manhattan(heads=HEADS, form=form, grid=grid, **DOUBLE)
    # The authors' tables are float32.
    assert_golden(module, flat, converted, output=tag, tolerance=3e-7)


def test_a_grid_of_one_row_is_the_same_by_axes(x64):
    x = np.random.default_rng(0).normal(size=(1, 6, 8))
    full, axes = (
        Manhattan(heads=2, form=form, grid=(1, 6), **DOUBLE)
        for form in ("full", "axes")
    )
    variables = full.init(jax.random.key(0), x)
    y, z = full.apply(variables, x)[0], axes.apply(variables, x)[0]
    np.testing.assert_allclose(y, z, atol=1e-12)


def test_turning_the_grid_by_half_turns_what_is_not_rotated(x64):
    """Distances are those of the turned grid; rotations know differences alone."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1, 6, 8))
    module = Manhattan(heads=2, grid=(2, 3), **DOUBLE)
    params = module.init(jax.random.key(0), x)["params"]
    y = module.apply({"params": params}, x)[0]
    # Rotated the other way round, queries and keys trade the halves of a pair.
    turned = dict(params)
    for name in ("query", "key"):
        kernel = params[name]["kernel"]
        turned[name] = {
            "kernel": jnp.concatenate([kernel[..., 2:], kernel[..., :2]], -1),
            "bias": params[name]["bias"],
        }
    turned["near_taps"] = params["near_taps"][::-1, ::-1]
    z = module.apply({"params": turned}, x[:, ::-1])[0][:, ::-1]
    np.testing.assert_allclose(z, y, atol=1e-12)


def test_tokens_without_a_grid_are_nearly_square():
    shapes = [Manhattan().shape(length) for length in (16, 12, 7)]
    assert shapes == [(4, 4), (3, 4), (1, 7)]
    with pytest.raises(ReslabError, match=r"as many places as there are tokens \(7\)"):
        Manhattan(grid=(2, 3)).shape(7)


def test_several_documents_in_a_row_are_refused():
    x = jnp.ones((2, 6, 16))
    module, segments = Manhattan(), jnp.array([[1] * 6, [1, 1, 1, 2, 2, 2]])
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(ReslabError, match="one document in each row; got several"):
        module.apply(variables, x, segments=segments)
    y = jax.jit(module.apply)(variables, x, segments=segments)[0]
    assert np.all(np.isfinite(y[0])) and np.all(np.isnan(y[1]))


@pytest.mark.parametrize("heads", [3, 16])
def test_refuses_heads_that_do_not_fit(heads):
    with pytest.raises(ReslabError, match="heads: expected a divisor"):
        Manhattan(heads=heads).size(16)
