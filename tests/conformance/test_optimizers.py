"""What every optimizer keeps: alone, on a small language model, and on many devices.

The gradient of the language model is compiled once for all; each optimizer compiles
its update alone, on one device and on eight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.layout import read
from reslab.core.trees import named_leaves
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train.checkpoint import Checkpoints
from reslab.train.state import TrainState, make_setup
from reslab.train.step import apply_optimizer

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SMALL = {
    "model.features": 16,
    "model.depth": 3,
    "model.mixer": "attention(heads=2)",
    "model.ffn": "gelu(hidden=32)",
    # Drawn gradients depend on the leaves. Of matrices with close
    # eigenvalues SOAP's directions are what rounding makes of them.
    "model.post_embedding_norm": "none",
    "model.loop": "scan",
    "precision.compute": "float32",
    "data.length": 16,
    "data.batch": 8,
    "eval.batch": 8,
    "optim.schedule": "constant",
    "optim.groups": (
        ("final_norm", {"freeze": True}),
        ("kernel|head|embedding", {}),
        (".", {"weight_decay": 0.0}),
    ),
}
# What each needs to be compared in float32, and learning rates that suit it.
SPECS = {
    "muon": "muon(products='float32')",
    "normuon": "normuon(products='float32')",
    "soap": "soap(every=2, largest=16)",
    # Around what compiles fast.
    "heavy_tail": "heavy_tail(inner='sgd', every=2, until=1.0, blend=2, least=2)",
    "importance_sparse": "importance_sparse(inner='sgd', every=2, share=0.7)",
    "lisa": "lisa(inner='sgd', every=2)",
    "noise_adaptive_muon": "noise_adaptive_muon(inner='sgd')",
    "normalize_and_project": "normalize_and_project(inner='sgd')",
    "drop_muon": "drop_muon(inner='sgd', buckets=2)",
    "tract": "tract(inner='sgd')",
    "spectral": "spectral(every=2, products='float32')",
}
RATES = {"lars": 10.0, "heavy_tail": 0.1}
# LARS leaves vectors to the rate alone, which is made for kernels.
QUADRATIC = {"lars": ("lars(adapts_vectors=True)", 20.0)}
# They say that moments are in the parameters' dtype, as in optax.
IN_DTYPE_OF_PARAMETERS = {"adamw", "sgd", "lamb"}
VOCABULARY = 24


@pytest.fixture(scope="module", params=registry.names("optimizers"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def spec(name):
    return SPECS.get(name, name)


@pytest.fixture(autouse=True)
def as_the_step_does():
    """Optax counts on implicit promotion, which `make_step` allows it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def setup_on(spec, shape, devices=None, **changes):
    fields = {key.replace("__", "."): value for key, value in changes.items()}
    config = configs.update(
        configs.load("base"), (SMALL | {"optim.name": spec} | fields).items()
    )
    name = registry.parse(spec).name
    rate = RATES.get(name, 0.3 if "sgd" in spec else 0.01)
    configs.update(config, [("optim.learning_rate", rate)])
    return make_setup(config, make_mesh(shape, devices))


@functools.cache
def start():
    """Parameters, as one device starts with them."""
    setup = setup_on("sgd", ONE, jax.devices()[:1])
    return jax.device_get(setup.init().params)


@functools.cache
def text():
    rng = np.random.default_rng(3)
    # A walk of small steps: easy to predict, so that the loss can fall.
    walk = np.cumsum(rng.integers(0, 2, (8, 17)), axis=1) % VOCABULARY
    walk = walk.astype(np.int32)
    return {
        "tokens": walk[:, :-1],
        "targets": walk[:, 1:],
        "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 16), np.int32),
        "loss_mask": np.ones((8, 16), bool),
    }


@functools.cache
def loss_and_gradient():
    setup = setup_on("sgd", ONE, jax.devices()[:1])

    def loss(params):
        total, sums, _ = setup.task.loss_sums(setup.model, {"params": params}, text())
        return total / sums["tokens"]

    return jax.jit(jax.value_and_grad(loss))


def updater(setup):
    """The update of a setup, as the training step makes it."""

    def update(gradients, opt_state, params):
        state = TrainState(jnp.asarray(0), params, opt_state, {})
        updates, state = apply_optimizer(setup, gradients, state, text())
        return optax.apply_updates(params, updates), state

    return jax.jit(update)


@pytest.fixture(scope="module")
def trained(spec):
    """Losses, parameters and state at the start and the end, and the update."""
    setup = setup_on(spec, ONE, jax.devices()[:1])
    with jax.numpy_dtype_promotion("standard"), use_mesh(setup.mesh):
        params, update, losses = start(), updater(setup), []
        state = jax.tree.map(jnp.asarray, setup.optimizer.init(params))
        path = [(params, state)]
        for _ in range(25):
            loss, gradients = loss_and_gradient()(params)
            losses.append(float(loss))
            params, state = update(gradients, state, params)
        path.append((params, state))
    return losses, path, update


@pytest.mark.conformance
def test_the_loss_of_a_language_model_falls(trained):
    losses, _, _ = trained
    assert losses[-1] < 0.85 * losses[0]
    assert np.all(np.isfinite(losses))


def test_frozen_parameters_stay_and_have_no_state(trained):
    _, [_, (params, state)], _ = trained
    np.testing.assert_array_equal(
        params["final_norm"]["gain"], start()["final_norm"]["gain"]
    )
    assert not [key for key in named_leaves(state) if "final_norm" in key]


def test_on_eight_devices_is_on_one(spec, trained, tmp_path):
    """And its state, saved there, is restored bit for bit on another mesh."""
    rng = np.random.default_rng(5)
    # Of full rank, as gradients of many tokens are: of others the null space, and
    # with it some optimizers' direction, is what rounding makes of it.
    gradients = [
        jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), start())
        for _ in range(3)
    ]
    _, path, update = trained
    params, state = path[0]
    for gradient in gradients:
        params, state = update(gradient, state, params)
    wanted = named_leaves(params)
    setup = setup_on(spec, {"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(setup.mesh):
        shardings = jax.tree.map(lambda s: s.sharding, setup.shapes)
        params = jax.device_put(start(), shardings.params)
        state = jax.device_put(path[0][1], shardings.opt_state)
        update = jax.jit(
            updater(setup), out_shardings=(shardings.params, shardings.opt_state)
        )
        for gradient in gradients:
            gradient = jax.device_put(gradient, shardings.params)
            params, state = update(gradient, state, params)
    for key, leaf in named_leaves(params).items():
        np.testing.assert_allclose(
            np.asarray(leaf), wanted[key], rtol=0, atol=1e-5, err_msg=key
        )
    other = setup_on(spec, {"data": 1, "fsdp": 4, "tensor": 2})
    whole = TrainState(jnp.asarray(3), params, state, {})
    with Checkpoints(tmp_path / "saved", is_async=False) as checkpoints:
        checkpoints.save(3, whole, data_index=0, force=True)
        restored = checkpoints.restore(other.shapes).state
    for key, leaf in named_leaves(whole).items():
        found = named_leaves(restored)[key]
        assert np.asarray(found).tobytes() == np.asarray(leaf).tobytes(), key


def test_layers_of_a_stack_are_layers_alone(spec, x64):
    """A stack of three and three stacks of one take the same steps."""
    rng = np.random.default_rng(1)
    shapes = {"query": (3, 4, 2, 3), "up": (3, 4, 6), "gain": (3, 4)}
    axes = {
        "query": ("layers", "embed", "heads", "head_dim"),
        "up": ("layers", "embed", "mlp"),
        "gain": ("layers", "embed"),
    }
    stacked = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    gradients = [
        {key: rng.standard_normal(shape) for key, shape in shapes.items()}
        for _ in range(4)
    ]

    def apart(tree):
        return {f"{k}_{i}": x[i : i + 1] for k, x in tree.items() for i in range(3)}

    layouts = {key: read(names, (0, 1, 2)) for key, names in axes.items()}
    alone = {f"{k}_{i}": read(n, (i,)) for k, n in axes.items() for i in range(3)}

    def run(params, gradients, layouts):
        made = registry.make(
            "optimizers", spec, learning_rate=0.1, weight_decay=0.1, layouts=layouts
        )
        params = jax.tree.map(jnp.asarray, params)
        state = made.init(params)

        @jax.jit
        def step(gradient, state, params):
            def objective(tree):
                return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree))

            made_here = optax.with_extra_args_support(made)
            updates, state = made_here.update(
                gradient, state, params, value_fn=objective
            )
            return optax.apply_updates(params, updates), state

        for gradient in gradients:
            params, state = step(gradient, state, params)
        return params

    together = apart(run(stacked, gradients, layouts))
    separate = run(apart(stacked), [apart(g) for g in gradients], alone)
    for key, leaf in together.items():
        np.testing.assert_allclose(leaf, separate[key], rtol=0, atol=1e-12, err_msg=key)
        assert not np.array_equal(leaf, apart(stacked)[key]) or "gain" in key


def test_statistics_of_bfloat16_parameters(name, spec):
    """They are in float32, where it is promised; updates keep the dtype."""
    setup = setup_on(spec, ONE, jax.devices()[:1])
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
        setup.shapes.params,
    )
    state = jax.eval_shape(setup.optimizer.init, params)
    if name not in IN_DTYPE_OF_PARAMETERS and "sgd" not in spec:
        # What is not a kernel's is AdamW's, in the parameters' dtype.
        kernels = [k for k in named_leaves(state) if k.endswith("mixer/query/kernel")]
        dtypes = {named_leaves(state)[key].dtype for key in kernels}
        assert dtypes - {jnp.dtype("int32")} == {jnp.dtype("float32")}
    updated, after = jax.eval_shape(updater(setup), params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("bfloat16")}
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
        lambda x: x.dtype, state
    )


def test_numbers_are_not_rounded_with_bfloat16_parameters(spec):
    """From one state, an update is that of float32 parameters, rounded once."""
    rng = np.random.default_rng(4)
    shapes = {"query": (3, 8, 2, 4), "up": (3, 8, 12), "gain": (3, 8)}
    axes = {
        "query": ("layers", "embed", "heads", "head_dim"),
        "up": ("layers", "embed", "mlp"),
        "gain": ("layers", "embed"),
    }
    layouts = {key: read(names, (0, 1, 2)) for key, names in axes.items()}
    made = registry.make(
        *("optimizers", spec),
        learning_rate=lambda step: 0.0137,
        weight_decay=0.13,
        layouts=layouts,
    )
    made = optax.with_extra_args_support(made)

    @jax.jit
    def update(gradient, state, params):
        def objective(tree):
            wide = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
            return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(wide))

        return made.update(gradient, state, params, value_fn=objective)

    def drawn():
        return {
            key: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
            for key, shape in shapes.items()
        }

    def wide(tree):
        return jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree
        )

    params = drawn()
    state = made.init(params)
    for _ in range(3):
        gradient = drawn()
        wanted, _ = update(*(wide(tree) for tree in (gradient, state, params)))
        found, state = update(gradient, state, params)
        for key, leaf in found.items():
            assert leaf.dtype == jnp.bfloat16
            exact = np.asarray(wanted[key])
            error = np.abs(np.asarray(leaf, np.float32) - exact)
            assert np.all(error <= 2**-8 * np.abs(exact)), key
        params = optax.apply_updates(params, found)


def test_the_update_never_leaves_the_device(spec):
    setup = setup_on(spec, ONE, jax.devices()[:1])
    shapes = setup.shapes
    traced = updater(setup).trace(shapes.params, shapes.opt_state, shapes.params)
    assert "callback" not in str(traced.jaxpr)


def test_converges_on_a_quadratic(name, spec):
    rng = np.random.default_rng(2)
    target = {
        "a": jnp.asarray(rng.standard_normal(3), jnp.float32),
        "b": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
    }
    # As large as the target, for those that keep the size of kernels.
    params = jax.tree.map(jnp.flip, target)
    spec, rate = QUADRATIC.get(name, (spec, 0.02 if "sgd" in spec else 0.2))
    schedule = optax.linear_schedule(rate, 0.0, 300)
    made = registry.make("optimizers", spec, learning_rate=schedule)
    made = optax.with_extra_args_support(made)

    def loss(params):
        return sum(
            jnp.sum(jnp.square(p - t))
            for p, t in zip(
                jax.tree.leaves(params), jax.tree.leaves(target), strict=True
            )
        )

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = made.update(
                jax.grad(loss)(params), state, params, value_fn=loss
            )
            return (optax.apply_updates(params, updates), state), None

        carry = params, made.init(params)
        return jax.lax.scan(step, carry, length=300)[0][0]

    assert loss(run(params)) < 1e-2 * loss(params)
