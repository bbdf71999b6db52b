import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.types import Inputs
from reslab.nn.base.history import History
from reslab.nn.residuals.dca import DeepCrossAttention, GeneralizedSum


@pytest.mark.parametrize("version", [1, 2, 3])
def test_golden(golden, x64, version):
    data = golden("dca_grn_from_equations")
    head = f"dev_grn{version}_"
    values, weights = data[f"{head}G"], data[f"{head}p_b"]
    read = GeneralizedSum(len(values), version, param_dtype=jnp.float64)
    params = {"weights": weights.T}
    if version == 3:
        params["vector"] = data[f"{head}p_w"]

    @jax.jit
    def run(values, params, cotangent):
        y, pull = jax.vjp(
            lambda values, params: read.apply(
                {"params": params}, History(values), len(values)
            ),
            values,
            params,
        )
        return y, *pull(cotangent)

    y, by_values, by_params = run(values, params, data[f"{head}cot"])
    pairs = [(y, "out"), (by_values, "grad_G"), (by_params["weights"].T, "grad_p_b")]
    if version == 3:
        pairs.append((by_params["vector"], "grad_p_w"))
    for actual, key in pairs:
        np.testing.assert_allclose(
            actual, data[head + key], rtol=1e-7, atol=1e-9, err_msg=key
        )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_middle_is_one_source(x64, count):
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(5, 1, 2, 4)), rng.normal(size=(4, 4))
    vector = rng.normal(size=4)
    read = GeneralizedSum(5, 3, last=2, param_dtype=jnp.float64)
    y = read.apply(
        {"params": {"weights": weights, "vector": vector}},
        History(jnp.asarray(values)),
        count,
    )
    latest = values[:count][1:][::-1]
    # The embedding, the sum of those between, and the last two from the end.
    sources = [(weights[0], values[0]), (weights[1], np.sum(latest[2:], axis=0))]
    sources += list(zip(weights[2:], latest[:2], strict=False))
    wanted = sum((b + np.maximum(v @ vector, 0)[..., None]) * v for b, v in sources)
    np.testing.assert_allclose(y, wanted, rtol=1e-9)


def test_a_mixer_reads_three_times():
    residual = DeepCrossAttention(depth=1, sublayers=2, sublayer="mixer")
    x = jax.random.normal(jax.random.key(0), (1, 2, 4))
    stream, seen = residual.widen(x), []
    _, variables = residual.init_with_output(
        jax.random.key(0), stream, lambda h: seen.append(h) or h.query, site=0
    )
    assert isinstance(seen[0], Inputs)
    assert set(variables["params"]) == {"read", "key_read", "value_read"}
    for read in seen[0]:
        np.testing.assert_array_equal(read, x)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"version": 4}, "version: expected 1, 2 or 3; got 4"),
        ({"last": -1}, "last: expected at least 1, or 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ReslabError, match=message):
        DeepCrossAttention(**options)
