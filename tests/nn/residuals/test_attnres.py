import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.history import History
from reslab.nn.residuals._history import DepthAttention, attend, merge
from reslab.nn.residuals.attnres import AttentionResiduals


def normalized(h, gain):
    return (
        h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * gain[None, None]
    )


def reader(params, prefix, key):
    """The authors' query and gain; gains are stored as offsets from one."""
    query, gain = params[f"{prefix}wq_{key}"][0], params[f"{prefix}gk_{key}"]
    return {"params": {"read": {"query": query, "gain": gain - 1}}}


def network(residual, x, params):
    """The network of the golden files, over a list of sources or an array."""
    stream = residual.widen(x).listed()
    layers = max(int(key[1:].split("_")[0]) for key in params if key[0] == "L") + 1
    for layer in range(layers):
        for index, (kind, norm) in enumerate((("attn", "ln1"), ("mlp", "ln2"))):
            prefix = f"L{layer}_"
            kernel, gain = params[f"{prefix}{kind}W"], params[prefix + norm]
            stream = residual.apply(
                reader(params, prefix, kind),
                stream,
                lambda h, k=kernel, g=gain: jnp.tanh(normalized(h, g) @ k),
                site=2 * layer + index,
            )
    last = reader(params, "", "final") if "wq_final" in params else {}
    return residual.apply(last, stream, method="narrow")


NETWORKS = {
    "full": ("attnres_full_net", ("dev",), {}),
    "block": ("attnres_block_net", ("dev",), {"replace": True}),
    "delta": ("attnres_delta_net", ("dev",), {"routing": "add"}),
    "delta_block": ("attnres_deltablock_net", ("dev",), {"routing": "add"}),
    "delta_block_fixed": ("attnres_deltablock_net", ("fix4",), {"routing": "add"}),
    "delta_block_released": (
        "attnres_deltablock_net",
        ("lit4",),
        {"routing": "add", "is_as_released": True},
    ),
}
CASES = [(kind, case) for kind, (_, cases, _) in NETWORKS.items() for case in cases]


@pytest.mark.parametrize("kind, case", CASES)
def test_golden_network(golden, x64, kind, case):
    name, _, options = NETWORKS[kind]
    data = golden(name)
    config = json.loads(str(data[f"{case}_cfg"]))
    depth = config["num_layers"]
    options = {k: v for k, v in options.items() if k != "replace"}
    if "block" in kind:
        options["block_layers"] = config["layers_per_block"]
    residual = AttentionResiduals(depth=depth, param_dtype=jnp.float64, **options)
    head = f"{case}_p_"
    params = {k.removeprefix(head): v for k, v in data.items() if k.startswith(head)}
    y, pull = jax.vjp(
        lambda x, params: network(residual, x, params), data[f"{case}_x"], params
    )
    np.testing.assert_allclose(y, data[f"{case}_out"], rtol=1e-7, atol=1e-9)
    x_gradient, gradient = pull(jnp.asarray(data[f"{case}_cot"]))
    np.testing.assert_allclose(x_gradient, data[f"{case}_grad_x"], rtol=1e-7, atol=1e-9)
    assert gradient
    for key, value in gradient.items():
        wanted = data[f"{case}_grad_p_{key}"]
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("variant", ["", "delta_", "deltanull_"])
def test_golden_reading(golden, x64, variant):
    data = golden("attnres_op")
    head = f"dev_{variant}"
    params = {
        "query": data[f"{head}p_w"],
        "gain": data[f"{head}p_g"] - 1,
    }
    if variant == "deltanull_":
        params |= {"null": data[f"{head}p_null"], "null_bias": np.zeros(())}
    read = DepthAttention(use_null=variant == "deltanull_", param_dtype=jnp.float64)
    part = data.get(f"{head}part", np.zeros(()))

    def reading(values, part, params):
        sources = History(values).before(values.shape[0])
        y, weights = read.apply({"params": params}, sources, sources.is_valid)
        return y + part, weights

    values = data[f"{head}V"]
    y, pull, weights = jax.vjp(reading, values, part, params, has_aux=True)
    by_values, by_part, by_params = pull(jnp.asarray(data[f"{head}cot"]))
    pairs = [(y, "out"), (by_values, "grad_V"), (by_params["query"], "grad_p_w")]
    pairs += [(by_params["gain"], "grad_p_g")]
    if variant == "":
        pairs += [(weights, "alpha")]
    else:
        pairs += [(by_part, "grad_part")]
    if variant == "deltanull_":
        pairs += [(by_params["null"], "grad_p_null")]
    for actual, key in pairs:
        np.testing.assert_allclose(
            actual, data[head + key], rtol=1e-7, atol=1e-9, err_msg=key
        )


def test_golden_phases(golden, x64):
    data = {k.removeprefix("dev_"): v for k, v in golden("attnres_twophase").items()}

    def merged(values, part, queries):
        readings, logs = attend(values, queries)
        return jax.vmap(merge, in_axes=(0, 0, None, 0))(readings, logs, part, queries)

    (readings, logs), pull = jax.vjp(attend, data["phase1_V"], data["phase1_p_q"])
    cotangent = jnp.asarray(data["phase1_cot"]), jnp.zeros_like(logs)
    by_values, by_queries = pull(cotangent)
    y, pull = jax.vjp(merged, data["merged_V"], data["merged_part"], data["merged_p_q"])
    by_merged = pull(jnp.asarray(data["merged_cot"]))
    for actual, key in (
        (readings, "phase1_out"),
        (logs, "lse"),
        (by_values, "phase1_grad_V"),
        (by_queries, "phase1_grad_p_q"),
        (y, "merged_out"),
        (by_merged[0], "merged_grad_V"),
        (by_merged[1], "merged_grad_part"),
        (by_merged[2], "merged_grad_p_q"),
    ):
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-9, err_msg=key)
