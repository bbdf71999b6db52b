import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout, read
from reslab.optim.muon import build, size_factor
from reslab.optim.orthogonalization import (
    KELLER,
    coefficients,
    orthogonalize_leaves,
    orthogonalized,
    polar_express,
)

KERNELS = ("w_tall", "w_wide", "w_sq")
OTHERS = ("b", "embed")


@pytest.mark.parametrize(
    "tag, dtype, atol", [("fp32", "float32", 1e-5), ("bf16", "bfloat16", 5e-3)]
)
def test_is_the_authors(replay, turned, tag, dtype, atol):
    muon = build(0.02, 0.1, turned(KERNELS), scale="keller", products=dtype)
    replay("muon_keller", tag, muon, leaves=KERNELS, steps=5, atol=atol)


def test_a_convolution_is_the_authors_matrix(replay):
    layouts = {"conv": Layout("matrix", (), (1, 2, 3), (0,))}
    muon = build(0.02, 0.1, layouts, scale="keller", products="float32")
    replay("muon_keller", "fp32", muon, leaves=("conv",), steps=5, atol=1e-5)


def test_other_parameters_are_the_authors(replay, turned):
    muon = build(
        0.02, 0.05, turned((), OTHERS), others="adamw(epsilon=1e-10)", others_scale=0.15
    )
    replay("muon_keller", "fp32", muon, leaves=OTHERS, steps=5, atol=1e-5)


@pytest.mark.parametrize("tag, nesterov", [("", True), ("_nonest", False)])
@pytest.mark.parametrize(
    "kind, dtype, atol", [("fp32", "float32", 1e-5), ("bf16", "bfloat16", 5e-3)]
)
def test_is_moonlights(replay, turned, kind, tag, dtype, atol, nesterov):
    muon = build(0.01, 0.1, turned(KERNELS), nesterov=nesterov, products=dtype)
    name = f"{kind}{tag}"
    replay("muon_moonlight", name, muon, leaves=KERNELS, steps=5, atol=atol)


@pytest.mark.parametrize(
    "tag, scale", [("original", "keller"), ("match_rms_adamw", "moonlight")]
)
def test_is_pytorchs(replay, turned, tag, scale):
    muon = build(0.01, 0.1, turned(KERNELS), scale=scale)
    name = f"{tag}_nest"
    replay("muon_torch213", name, muon, leaves=KERNELS, steps=5, atol=5e-3)


@pytest.mark.optimized
def test_newton_schulz_is_the_authors(golden):
    arrays = golden("muon_keller")
    for steps in (3, 5, 7):
        for leaf in ("tall", "wide", "lowrank", "batched"):
            given = arrays[f"dev_nsin/{leaf}"]
            x = jnp.asarray(given, jnp.float32)
            found = orthogonalized(x, coefficients("keller", steps))
            left, sizes, right = np.linalg.svd(given, full_matrices=False)
            is_large = sizes > 1e-2 * sizes.max()
            left, right = left * is_large[..., None, :], right * is_large[..., None]

            def seen(matrix, left=left, right=right):
                inner = left.swapaxes(-1, -2) @ matrix @ right.swapaxes(-1, -2)
                return left @ inner @ right

            wanted = arrays[f"dev_ns{steps}_fp32/{leaf}"]
            np.testing.assert_allclose(seen(found), seen(wanted), atol=1e-5)
            # Where x is small, its rounding is raised by every step as it is.
            rounding = np.finfo(np.float32).eps * KELLER[0] ** steps
            rest = (found - seen(found)) - (wanted - seen(wanted))
            assert np.max(np.abs(rest)) < rounding


def same_quintics(found, wanted, lower):
    """Compares coefficients, or where rounding decides them, what they do.

    A quintic for an interval of width w comes from a system whose condition grows as
    w**-3, and the width itself from a difference.
    """
    found, wanted = np.array(found), np.array(wanted)
    powers = np.array([1, 3, 5])
    points = np.linspace(0.99, 1.01, 9)[:, None] ** powers
    for row, own in zip(found, wanted, strict=True):
        if 1 - lower > 1e-2:
            np.testing.assert_allclose(row, own, rtol=1e-10)
        else:
            np.testing.assert_allclose(points @ row, points @ own, rtol=0, atol=1e-8)
        lower = own @ lower**powers


def test_polar_express_is_the_authors(golden):
    arrays = golden("polar_express")
    table, wanted = polar_express(10), arrays["coeffs_l1e-3_it10_sf1e-2_cush0.02"]
    same_quintics(table, wanted, 1e-3)
    for lower in ("0.01", "0.001", "0.0001", "1e-06"):
        for steps in (3, 5, 7):
            same_quintics(
                polar_express(steps, float(lower)),
                arrays[f"coeffs_l{lower}_it{steps}_sf1e-2_cush0.02"],
                float(lower),
            )
        same_quintics(
            polar_express(5, float(lower), 0.0, 0.0),
            arrays[f"coeffs_l{lower}_it5_sf0_cush0"],
            float(lower),
        )
    for steps in (5, 8):
        for leaf in ("tall", "wide", "illcond"):
            x = jnp.asarray(arrays[f"dev_in/{leaf}"], jnp.float32)
            found = orthogonalized(x, table[:steps], margin=1.01)
            wanted = arrays[f"dev_pe{steps}_fp32/{leaf}"]
            np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("table", ["keller", "polar_express"])
def test_singular_values_become_one(table):
    x = jax.random.normal(jax.random.key(0), (3, 24, 40))
    rows = coefficients(table, 6)
    values = jnp.linalg.svd(orthogonalized(x, rows, margin=1.01), compute_uv=False)
    assert np.all((values > 0.6) & (values < 1.25))


def test_scale_and_transposition_do_not_matter():
    x = jax.random.normal(jax.random.key(1), (8, 12))
    rows = coefficients("keller", 5)
    plain = orthogonalized(x, rows)
    np.testing.assert_allclose(orthogonalized(100 * x, rows), plain, atol=1e-5)
    np.testing.assert_array_equal(orthogonalized(x.T, rows), plain.T)
    zero = orthogonalized(jnp.zeros((4, 6)), rows)
    np.testing.assert_array_equal(zero, 0.0)


def test_matrices_may_take_fewer_steps_than_others():
    x = jax.random.normal(jax.random.key(2), (3, 6, 8))
    rows = coefficients("keller", 5)
    found = orthogonalized(x, rows, steps=jnp.asarray([5, 3, 1]))
    for index, steps in enumerate((5, 3, 1)):
        wanted = orthogonalized(x[index], rows[:steps])
        np.testing.assert_allclose(found[index], wanted, atol=1e-6)


def test_kernels_of_any_form_are_matrices(x64):
    """Heads are one axis, experts and layers are apart, transposed ones together."""
    rng = np.random.default_rng(0)
    shapes = {
        "query": (("layers", "embed", "heads", "head_dim"), (2, 8, 2, 4)),
        "output": (("layers", "heads", "head_dim", "embed"), (2, 2, 4, 8)),
        "up": (("layers", "experts", "embed", "mlp"), (2, 3, 8, 12)),
        "down": (("layers", "experts", "mlp", "embed"), (2, 3, 12, 8)),
    }
    tree = {name: rng.standard_normal(shape) for name, (_, shape) in shapes.items()}
    tree = jax.tree.map(jnp.asarray, tree)
    layouts = {name: read(axes) for name, (axes, _) in shapes.items()}
    rows = coefficients("keller", 5)
    found = orthogonalize_leaves(tree, layouts, rows, dtype=jnp.float64)
    for name, x in tree.items():
        stacked = np.asarray(x).reshape(-1, *x.shape[-2:])
        if name == "query":
            stacked = np.asarray(x).reshape(2, 8, 8)
        if name == "output":
            stacked = np.asarray(x).reshape(2, 8, 8)
        for one, matrix in zip(
            np.asarray(found[name]).reshape(stacked.shape), stacked, strict=True
        ):
            np.testing.assert_allclose(
                one, orthogonalized(jnp.asarray(matrix), rows, dtype=jnp.float64)
            )


def test_sizes_of_updates():
    tall = Layout("matrix", (), (0,), (1,))
    assert size_factor(tall, (4, 16), "keller") == 2
    assert size_factor(tall, (16, 4), "keller") == 1
    assert size_factor(tall, (16, 4), "spectral") == 0.5
    assert size_factor(tall, (16, 4), "moonlight") == pytest.approx(0.8)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("muon(scale='keler')", "'keller'"),
        ("muon(products='float16')", "'bfloat16'"),
        ("muon(ns_coeffs='polar')", "unknown table 'polar'"),
        ("muon(ns_steps=0)", "at least 1 and at most 256; got 0"),
        (
            "muon(ns_steps=1, ns_coeffs=((1, 2, 3), (1, 2, 3)))",
            "at most one row per step",
        ),
    ],
)
def test_mistakes(spec, words):
    with pytest.raises(ReslabError) as caught:
        registry.make("optimizers", spec, learning_rate=0.1)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "old, new",
    [
        ("muon(momentum=0.9, iterations=4)", "muon(beta=0.9, ns_steps=4)"),
        ("muon(b1=0.8, b2=0.9)", "muon(others='adamw(b1=0.8, b2=0.9)')"),
        ("spectral(epsilon=1e-3)", "spectral(others='adamw(epsilon=1e-3)')"),
        ("normuon(b2=0.8, adam_b2=0.9)", "normuon(b2=0.8, others='adamw(b2=0.9)')"),
    ],
)
def test_earlier_names_mean_what_they_meant(old, new):
    params = {"w": jnp.arange(12.0).reshape(3, 4) / 7, "b": jnp.ones(4)}

    def step(spec):
        made = registry.make("optimizers", spec, learning_rate=0.1)
        return made.update(params, made.init(params), params)[0]

    with pytest.warns(FutureWarning, match="is now"):
        before = step(old)
    chex.assert_trees_all_equal(before, step(new))
