"""What every norm over a batch keeps while it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import (
    BATCH_STATS,
    GRADIENT_STATS,
    check_updated,
    model_state_of,
)
from reslab.core.trees import named_leaves, unbox
from reslab.nn.base.norm import needs_batch
from reslab.parallel.mesh import batch_sharding, use_mesh
from reslab.train.step import gradient_in_parts

NAMES = [name for name in registry.names("norms") if needs_batch(name)]
WIDTH = 16


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def norm(name):
    return registry.make("norms", name)


@pytest.fixture(scope="module")
def x():
    return 1.0 + 2.0 * jax.random.normal(jax.random.key(2), (8, 4, WIDTH))


@pytest.fixture(scope="module")
def mask():
    return np.arange(4) < np.array([4, 2, 3, 1, 4, 4, 3, 2])[:, None]


@pytest.fixture(scope="module")
def variables(norm, x):
    return unbox(norm.init(jax.random.key(0), x))


def trained(norm):
    """Output and statistics, and the gradient by everything, as a function."""

    def run(variables, x, mask):
        state = model_state_of(variables)
        still = state.pop(GRADIENT_STATS, {})

        def loss(params, still, x):
            y, written = norm.apply(
                {"params": params, **state, GRADIENT_STATS: still},
                x,
                mask,
                mutable=[BATCH_STATS],
            )
            wide = y.astype(jnp.float32)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(wide), 0)), (y, written)

        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        return gradient(variables.get("params", {}), still, x)

    return run


def test_on_eight_devices_is_on_one(norm, variables, x, mask, mesh, assert_close):
    alone = jax.jit(trained(norm))(variables, x, mask)
    with use_mesh(mesh):
        spread = jax.device_put((x, mask), batch_sharding(mesh))
        together = jax.jit(trained(norm))(variables, *spread)
    assert len(together[1][0].sharding.device_set) == 8
    assert_close(together, alone, 2e-5)


def test_in_bfloat16_statistics_are_those_of_float32(norm, variables, x, mask):
    short = x.astype(jnp.bfloat16)
    _, (y, written) = trained(norm)(variables, short, mask)
    _, (wide, wanted) = trained(norm)(variables, short.astype(jnp.float32), mask)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    for name, leaf in named_leaves(written).items():
        np.testing.assert_array_equal(leaf, named_leaves(wanted)[name], err_msg=name)


def test_padding_touches_no_valid_output(norm, variables, x, mask):
    before = trained(norm)(variables, x, mask)[1]
    if getattr(norm, "is_activation", False):
        pytest.skip("its positions see each other by its definition")
    filled = jnp.where(mask[..., None], x, 1e3)
    after = trained(norm)(variables, filled, mask)[1]
    np.testing.assert_array_equal(before[0][mask], after[0][mask])
    for name, leaf in named_leaves(after[1]).items():
        np.testing.assert_array_equal(leaf, named_leaves(before[1])[name])


def test_refuses_to_be_evaluated_before_it_was_trained(norm, variables, x, mask):
    with pytest.raises(ReslabError, match="never updated"):
        check_updated(variables)
    _, (_, written) = trained(norm)(variables, x, mask)
    check_updated({**variables, **written})


@pytest.mark.conformance
@pytest.mark.parametrize(
    "spec",
    [
        "power",
        *(
            pytest.param(spec, marks=pytest.mark.conformance)
            for spec in ("unified", "progressive_rep_batch")
        ),
    ],
)
def test_a_model_trains_the_same_in_every_form(
    spec, small_model, drawn, tokens, assert_close
):
    """Scanned, or unrolled and recomputed; every layer has statistics of its own."""
    model = small_model(norm=spec, depth=2)
    variables = drawn(model, tokens)
    scanned = model_gradient(model, variables, tokens, parts=1)
    model = small_model(norm=spec, depth=2, is_unrolled=True, remat="full")
    assert_close(model_gradient(model, variables, tokens, parts=1), scanned, 1e-4)
    for name, leaf in named_leaves(scanned[1]).items():
        if name.endswith("/updates"):
            np.testing.assert_array_equal(leaf, 1, err_msg=name)


def later(variables):
    """The variables with statistics as after a long run: what was gathered is used."""

    def run_along(path, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.full_like(leaf, 10_000)
        seed = sum(str(path).encode())
        drawn = np.random.default_rng(seed).uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(drawn, leaf.dtype)

    return {
        name: tree
        if name == "params"
        else jax.tree_util.tree_map_with_path(run_along, tree)
        for name, tree in variables.items()
    }


@pytest.mark.parametrize("spec", ["power", "unified"])
def test_after_the_warmup_every_form_is_the_same(
    spec, small_model, drawn, tokens, assert_close
):
    model = small_model(norm=spec, depth=2)
    begun = drawn(model, tokens)
    warm = later(begun)
    scanned = model_gradient(model, warm, tokens, parts=1)
    unrolled = small_model(norm=spec, depth=2, is_unrolled=True, remat="full")
    assert_close(model_gradient(unrolled, warm, tokens, parts=1), scanned, 1e-4)
    cold = named_leaves(model_gradient(model, begun, tokens, parts=1)[0])
    for name, leaf in named_leaves(scanned[0]).items():
        assert not np.allclose(leaf, cold[name], rtol=1e-2), f"{name}: as at first"


@pytest.mark.parametrize("spec", ["power", "unified"])
def test_after_the_warmup_eight_devices_are_one(spec, x, mask, mesh, assert_close):
    norm = registry.make("norms", spec)
    warm = later(unbox(norm.init(jax.random.key(0), x)))
    alone = jax.jit(trained(norm))(warm, x, mask)
    with use_mesh(mesh):
        spread = jax.device_put((x, mask), batch_sharding(mesh))
        assert_close(jax.jit(trained(norm))(warm, *spread), alone, 2e-5)


@pytest.mark.parametrize(
    "spec",
    [
        "batch",
        *(
            pytest.param(spec, marks=pytest.mark.conformance)
            for spec in ("power(warmup=1)", "unified(window=2)")
        ),
    ],
)
def test_a_step_in_parts_updates_once(spec, small_model, drawn, tokens, assert_close):
    """Equal parts leave what one of them leaves."""
    twice = np.repeat(tokens[:4], 2, axis=0)
    model = small_model(norm=spec, depth=2)
    variables = drawn(model, tokens)
    whole, state, _ = model_gradient(model, variables, twice, parts=1)
    parted, in_parts, _ = model_gradient(model, variables, twice, parts=2)
    assert_close(parted, whole, 1e-4)
    assert state.keys() == in_parts.keys()
    for name, leaf in named_leaves(in_parts[BATCH_STATS]).items():
        if name.endswith("/updates"):
            np.testing.assert_array_equal(leaf, 1)
        elif "variance" not in name:  # The unbiased one knows its sample's size.
            wanted = named_leaves(state[BATCH_STATS])[name]
            np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-5)
    if GRADIENT_STATS in state:
        assert_close(in_parts[GRADIENT_STATS], state[GRADIENT_STATS], 1e-3)
        for name, leaf in named_leaves(state[GRADIENT_STATS]).items():
            assert np.any(leaf != 0), f"{name} stays as it was"


def model_gradient(model, variables, tokens, parts):
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch = {"inputs": inputs, "targets": targets, "loss_mask": np.ones(inputs.shape)}

    def objective(params, gradient_stats, others, batch, total, key):
        del key
        collections = {**others, GRADIENT_STATS: gradient_stats}
        (nll, _), written = model.apply(
            {"params": params, **collections},
            batch["inputs"],
            batch["targets"],
            segments=jnp.ones_like(batch["inputs"]),
            method="losses",
            mutable=[BATCH_STATS],
        )
        return jnp.sum(nll) / total, ({"nll": jnp.sum(nll)}, written[BATCH_STATS])

    run = jax.jit(gradient_in_parts(objective, parts))
    key = jax.random.key(0)
    return run(variables["params"], model_state_of(variables), batch, key)


def test_one_norm_over_several_streams_is_refused(small_model, tokens):
    model = small_model(norm="batch", placement="post", residual="hyper", depth=1)
    with pytest.raises(ReslabError, match="several streams by one norm"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_a_norm_inside_a_sublayer_is_refused(small_model, tokens):
    model = small_model(norm="batch", placement="sub_ln", depth=1)
    with pytest.raises(ReslabError, match="takes statistics of a batch"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_layers_that_share_a_norm(small_model, drawn, tokens):
    """Passes of a loop update statistics one after the other, or are refused."""
    model = small_model(norm="batch", stack="looped(loops=2)", depth=1)
    _, state, _ = model_gradient(model, drawn(model, tokens), tokens, parts=1)
    updates = {k: v for k, v in named_leaves(state).items() if k.endswith("updates")}
    assert {int(np.max(v)) for k, v in updates.items() if "layers" in k} == {2}
    model = small_model(norm="power", stack="looped(loops=2)", depth=1)
    with pytest.raises(ReslabError, match="statistics of its backward pass"):
        model_gradient(model, drawn(model, tokens), tokens, parts=1)
