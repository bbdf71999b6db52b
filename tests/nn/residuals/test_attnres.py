import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.nn.base.history import History
from reslab.nn.residuals._depth_attention import DepthAttention
from reslab.nn.residuals.attnres import AttentionResiduals
from reslab.nn.residuals.delta_attnres import DeltaAttentionResiduals
from reslab.ops.depth_attention.reference import attend, merge


def normalized(h, gain):
    return (
        h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * gain[None, None]
    )


def reader(params, prefix, key):
    """The authors' query and gain; gains are stored as offsets from one."""
    query, gain = params[f"{prefix}wq_{key}"][0], params[f"{prefix}gk_{key}"]
    return {"params": {"read": {"query": query, "gain": gain - 1}}}


def make(depth=3, routing="replace", **options):
    fields = {"depth": depth, "sublayers": 2, "param_dtype": jnp.float64}
    kinds = {"replace": AttentionResiduals, "add": DeltaAttentionResiduals}
    return kinds[routing](**fields | options)


def network(residual, x, params):
    """The network of the golden files, over a list of sources."""
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


# Golden file, case, and what the residual is asked for.
NETWORKS = {
    "full": ("attnres_full_net", "dev", {}),
    "block": ("attnres_block_net", "dev", {}),
    "delta": ("attnres_delta_net", "dev", {"routing": "add"}),
    "delta_block": ("attnres_deltablock_net", "dev", {"routing": "add"}),
    "delta_block_fixed": ("attnres_deltablock_net", "fix4", {"routing": "add"}),
    "delta_block_released": (
        "attnres_deltablock_net",
        "lit4",
        {"routing": "add", "is_as_released": True},
    ),
}


@pytest.mark.conformance
@pytest.mark.parametrize("kind", NETWORKS)
def test_golden_network(golden, x64, kind):
    name, case, options = NETWORKS[kind]
    data = golden(name)
    config = json.loads(str(data[f"{case}_cfg"]))
    if "block" in kind:
        options = options | {"block_layers": config["layers_per_block"]}
    residual = make(depth=config["num_layers"], **options)
    head = f"{case}_p_"
    params = {k.removeprefix(head): v for k, v in data.items() if k.startswith(head)}

    @jax.jit
    def run(x, params, cotangent):
        y, pull = jax.vjp(lambda x, p: network(residual, x, p), x, params)
        return y, *pull(cotangent)

    y, x_gradient, gradient = run(data[f"{case}_x"], params, data[f"{case}_cot"])
    np.testing.assert_allclose(y, data[f"{case}_out"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(x_gradient, data[f"{case}_grad_x"], rtol=1e-7, atol=1e-9)
    assert gradient
    for key, value in gradient.items():
        wanted = data[f"{case}_grad_p_{key}"]
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9, err_msg=key)


def test_golden_readings_of_the_released_order(golden, x64):
    data = golden("attnres_kimi_k3_from_equations")
    names = ("x", "W", "gains", "queries", "output_gain", "output_query")
    sites = len(data["W"])

    def network(given, **changed):
        options = {"block_layers": 2, "epsilon": 1e-5} | changed
        residual = make(depth=sites // 2, **options)
        readings = []

        def reader(gain, query):
            return {"params": {"read": {"gain": gain - 1, "query": query}}}

        stream = residual.widen(given["x"]).listed()
        for site in range(sites):

            def branch(h, kernel=given["W"][site]):
                readings.append(h)
                return jnp.tanh(h @ kernel)

            params = reader(given["gains"][site], given["queries"][site])
            stream = residual.apply(params, stream, branch, site=site)
        last = reader(given["output_gain"], given["output_query"])
        return residual.apply(last, stream, method="narrow"), jnp.stack(readings)

    def run(given):
        y, pull, readings = jax.vjp(network, given, has_aux=True)
        return y, readings, pull(jnp.asarray(data["cot"]))[0]

    given = {name: data[name] for name in names}
    y, readings, gradients = jax.jit(run)(given)
    np.testing.assert_allclose(y, data["out"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(readings, data["readings"], rtol=1e-10, atol=1e-10)
    for name, gradient in gradients.items():
        wanted = data[f"grad_{name}"]
        np.testing.assert_allclose(gradient, wanted, atol=1e-10, err_msg=name)
    others = ({"epsilon": 1e-6}, {"block_layers": 1}, {"source": "cumulative"})
    for changed in others:
        other, _ = jax.jit(lambda given, c=changed: network(given, **c))(given)
        assert np.max(np.abs(other - data["out"])) > 1e-8, changed


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

    @jax.jit
    def run(cotangent):
        y, pull, weights = jax.vjp(reading, values, part, params, has_aux=True)
        return y, weights, *pull(cotangent)

    y, weights, by_values, by_part, by_params = run(data[f"{head}cot"])
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


@pytest.mark.conformance
def test_golden_phases(golden, x64):
    data = {k.removeprefix("dev_"): v for k, v in golden("attnres_twophase").items()}

    def merged(values, part, queries):
        readings, logs = attend(values, queries)
        merged = jax.vmap(merge, in_axes=(0, 0, None, 0))
        return merged(readings, logs, part, queries)[0]

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


def readings(residual, sublayers, seed=0):
    """What each sublayer reads, and the end, with sources drawn at random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, 2, 4))
    outputs = rng.normal(size=(sublayers, 1, 2, 4))
    seen = []

    def branch(site):
        return lambda h: (seen.append(np.asarray(h)), outputs[site])[1]

    stream = residual.widen(jnp.asarray(x))
    for site in range(sublayers):
        stream, _ = residual.init_with_output(
            jax.random.key(0), stream, branch(site), site=site
        )
    end, _ = residual.init_with_output(jax.random.key(0), stream, method="narrow")
    return [*seen, np.asarray(end)], [x, *outputs]


@pytest.mark.parametrize("source", ["delta", "cumulative"])
@pytest.mark.parametrize("block", [0, 2, 3, 6])
def test_starts_as_the_mean_of_its_sources(x64, source, block):
    seen, values = readings(make(source=source, block=block), 6)
    size = block or 1
    for site, reading in enumerate(seen):
        # Finished blocks, and what there is of an unfinished one.
        ends = [*range(size, site, size), site] if site else []
        sums = [np.sum(values[1 : end + 1], axis=0) for end in ends]
        if source == "cumulative":
            sources = [values[0], *(values[0] + total for total in sums)]
        else:
            sources = [values[0], *np.diff([0 * values[0], *sums], axis=0)]
        np.testing.assert_allclose(reading, np.mean(sources, axis=0), rtol=1e-9)


def test_delta_starts_as_the_stream_and_the_mean_of_its_sources(x64):
    seen, values = readings(make(routing="add"), 6)
    np.testing.assert_allclose(seen[0], values[0])
    for site in range(1, 6):
        stream = np.sum(values[: site + 1], axis=0)
        wanted = stream + np.mean(values[: site + 1], axis=0)
        np.testing.assert_allclose(seen[site], wanted, rtol=1e-9)
    np.testing.assert_allclose(seen[6], np.sum(values, axis=0), rtol=1e-9)


@pytest.mark.parametrize("routing", ["replace", "add"])
def test_a_window_leaves_the_embedding_and_the_latest(x64, routing):
    seen, values = readings(make(routing=routing, window=2), 6)
    for site in range(1, 6):
        kept = [values[0], *values[max(1, site - 1) : site + 1]]
        wanted = np.mean(kept, axis=0)
        if routing == "add":
            wanted = wanted + np.sum(values[: site + 1], axis=0)
        np.testing.assert_allclose(seen[site], wanted, rtol=1e-9)


def learned(residual, largest=1.0):
    """What comes out after six sublayers, with weights that were learned."""
    rng = np.random.default_rng(3)

    def drawn(*arguments, **keywords):
        params = residual.init(jax.random.key(0), *arguments, **keywords)
        return jax.tree.map(lambda p: largest * rng.normal(size=p.shape), params)

    stream = residual.widen(jnp.asarray(rng.normal(size=(1, 3, 8)))).listed()
    for site in range(6):
        kernel = rng.normal(size=(8, 8)) / 3

        def branch(h, kernel=kernel):
            return jnp.tanh(h @ kernel)

        params = drawn(stream, branch, site=site)
        stream = residual.apply(params, stream, branch, site=site)
    return residual.apply(drawn(stream, method="narrow"), stream, method="narrow")


@pytest.mark.conformance
@pytest.mark.parametrize(
    "routing, same",
    [
        ("replace", {"block": 1}),
        ("replace", {"block_layers": 0}),
        ("replace", {"window": 6}),
        ("add", {"window": 6}),
        ("add", {"window": 99}),
    ],
)
def test_blocks_of_one_and_windows_of_all_are_the_full_form(x64, routing, same):
    full = learned(make(routing=routing))
    np.testing.assert_allclose(learned(make(routing=routing, **same)), full, rtol=1e-9)
    less = learned(make(routing=routing, window=2))
    assert not np.allclose(less, full, rtol=1e-3)


def test_large_logits_are_no_overflow(x64):
    assert np.all(np.isfinite(learned(make(), largest=1e100)))


def test_a_gate_that_starts_at_zero_is_the_plain_stream(x64):
    seen, values = readings(make(routing="add", gate="alpha"), 6)
    for site, reading in enumerate(seen):
        wanted = np.sum(values[: site + 1], axis=0)
        np.testing.assert_allclose(reading, wanted, rtol=1e-9)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_other_gates_start_at_an_eighth(x64, gate):
    seen, values = readings(make(routing="add", gate=gate), 6)
    half = 1 / (1 + np.exp(2))
    wanted = np.sum(values[:4], axis=0) + half * np.mean(values[:4], axis=0)
    np.testing.assert_allclose(seen[3], wanted, rtol=1e-9)


def test_a_large_null_logit_reads_nothing_else(x64):
    seen, values = readings(make(routing="add", use_null=True, null_bias=40.0), 6)
    wanted = np.sum(values[:4], axis=0)
    np.testing.assert_allclose(seen[3], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("routing", "counts"), [("replace", [1, 2, 3, 4, 5]), ("add", [1, 2, 3, 4])]
)
def test_the_bonus_is_the_mean_entropy_over_readings(x64, routing, counts):
    residual = make(depth=2, routing=routing, entropy_bonus=2.0)
    stream, added = residual.widen(jnp.ones((1, 2, 4))), 0.0

    def collect(*inputs, **options):
        made = residual.init(jax.random.key(0), *inputs, **options)
        y, written = residual.apply(made, *inputs, mutable=[LOSSES], **options)
        return y, total_loss(written)

    for site in range(4):
        stream, added_here = collect(stream, lambda h: 2 * h, site=site)
        added += added_here
    added += collect(stream, method="narrow")[1]
    # At first all that is seen weighs the same.
    np.testing.assert_allclose(added, -2.0 * np.mean(np.log(counts)), rtol=1e-9)


def test_logits_do_not_see_the_size_of_a_source(x64):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 1, 2, 8))
    params = {"query": rng.normal(size=8), "gain": rng.normal(size=8)}
    read = DepthAttention(epsilon=0.0, param_dtype=jnp.float64)

    def weights(values):
        sources = History(jnp.asarray(values)).before(3)
        return read.apply({"params": params}, sources, sources.is_valid)[1]

    scale = np.asarray([1.0, 7.0, 0.1])[:, None, None, None]
    np.testing.assert_allclose(weights(scale * values), weights(values), rtol=1e-9)
    order = np.asarray([2, 0, 1])
    np.testing.assert_allclose(weights(values[order]), weights(values)[order])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": 7}, "block: expected at most the model's 6"),
        ({"block": -1}, "block: expected at least 0"),
        ({"block_layers": 4}, "block_layers: expected at most the model's 3"),
        ({"block": 2, "block_layers": 1}, "block: expected 0 where block_layers"),
        ({"window": -1}, "window: expected at least 1, or 0"),
        ({"entropy_bonus": -0.1}, "entropy_bonus: expected at least 0"),
        ({"source": "sum"}, "source: expected 'delta' or 'cumulative'; got 'sum'"),
        ({"gate": "soft", "routing": "add"}, "gate: expected '', 'scalar'"),
        (
            {"is_as_released": True, "routing": "add"},
            "is_as_released: expected source='delta' and blocks",
        ),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ReslabError, match=message):
        make(**options)


def test_the_argument_of_earlier_versions_chooses_the_variant():
    def old(spec):
        return registry.make("residuals", spec, depth=3)

    with pytest.warns(FutureWarning, match="routing='add' is now 'delta_attnres'"):
        added = old("attnres(routing='add', gate='alpha')")
    assert added == DeltaAttentionResiduals(gate="alpha", depth=3)
    with pytest.warns(FutureWarning, match="routing='replace' is now 'attnres'"):
        assert old("attnres(routing='replace')") == AttentionResiduals(depth=3)
    with pytest.raises(ReslabError, match="routing: expected 'replace' or 'add'"):
        old("attnres(routing='sum')")
    with pytest.raises(ReslabError, match="no argument 'routing'"):
        old("delta_attnres(routing='add')")
