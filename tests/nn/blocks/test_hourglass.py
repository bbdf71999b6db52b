import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.trees import count_parameters, named_leaves
from reslab.nn.blocks.hourglass import HourglassBlock

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.mark.parametrize("case", ["dev"])
def test_golden(golden, case, x64, silent):
    arrays = golden("hourglass_from_equations")
    data = {
        key.removeprefix(f"{case}_swiglu_"): value
        for key, value in arrays.items()
        if key.startswith(f"{case}_swiglu_")
    }
    hidden = data["p_wd1_0"].shape[0]
    steps = sum(key.startswith("p_wu_") for key in data)
    block = HourglassBlock(
        mixer=silent,
        ffn=f"swiglu(hidden={hidden})",
        norm="rms(is_gain_offset=False)",
        bottlenecks=steps,
        context=Context(**WIDE),
    )
    width = data["x"].shape[-1]
    ones = {"input_norm": {"gain": np.ones(width)}}

    def parameters(prefix):
        tree = {"mixer_placement": ones}
        for i in range(steps):
            tree[f"ffn_{i}_placement"] = {"input_norm": {"gain": data[f"{prefix}g{i}"]}}
            names = {"gate": "wd1", "up": "wd2", "down": "wu"}
            tree[f"ffn_{i}"] = {
                ours: {"kernel": data[f"{prefix}{theirs}_{i}"].T}
                for ours, theirs in names.items()
            }
        return tree

    places = {"positions": np.zeros(data["x"].shape[:2], np.int32)}

    def loss(params, x):
        y = block.apply({"params": params}, x, {}, layer=0, **places)[0]
        return jnp.sum(y * data["cot"]), y

    slopes, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
        parameters("p_"), data["x"]
    )
    np.testing.assert_allclose(y, data["out"], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(slopes[1], data["grad_x"], rtol=1e-7, atol=1e-7)
    found, wanted = named_leaves(slopes[0]), named_leaves(parameters("grad_p_"))
    for name in wanted:
        if not name.startswith("mixer"):
            np.testing.assert_allclose(
                found[name], wanted[name], rtol=1e-7, atol=1e-7, err_msg=name
            )


def test_steps_together_have_the_parameters_of_one(make_block):
    def parameters(spec):
        _, params = make_block(spec, mixer="attention(heads=2)", ffn="gelu")
        kernels = {k: v for k, v in named_leaves(params).items() if "/kernel" in k}
        return count_parameters([v for k, v in kernels.items() if k[:3] == "ffn"])

    assert parameters("hourglass(bottlenecks=4)") == parameters("standard")
    assert parameters("hourglass(bottlenecks=2)") == parameters("standard")
    assert parameters("hourglass(bottlenecks=2, lift=16)") == parameters("standard")


def test_the_lift_is_a_fixed_projection(make_block, apply_block, parts, features):
    """With steps that add nothing, what is left is linear: R, then the way down."""
    kinds = {"mixer": "attention(heads=2)", "ffn": "swiglu(hidden=12)"}
    block, params = make_block("hourglass(bottlenecks=2, lift=24, seed=5)", **kinds)
    assert "lift" not in str(params.keys())
    for step in ("ffn_0", "ffn_1"):
        params[step]["down"] = jax.tree.map(np.zeros_like, params[step]["down"])
    norm, mix, _ = parts(params)
    x = features + mix(norm("mixer", features))
    signs = jax.random.rademacher(jax.random.key(5), (8, 24), jnp.int8)
    lifted = norm("ffn", x) @ (np.asarray(signs, np.float64) / 8**0.5)
    wanted = x + lifted @ params["down"]["kernel"]
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_steps_run_in_the_wider_space(make_block):
    kinds = {"mixer": "attention(heads=2)", "ffn": "gelu(hidden=3)"}
    block, params = make_block("hourglass(bottlenecks=2, lift=24)", **kinds)
    assert block.sublayers == 2
    assert params["ffn_1"]["up"]["kernel"].shape == (24, 3)
    assert params["ffn_1_norm"]["gain"].shape == (24,)
    attention = block.make_mixer(parent=None).mixing_flops(4, 8)
    assert block.mixing_flops(4, 8) == attention + 2 * 8 * 24


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hourglass(bottlenecks=0)", "bottlenecks: expected at least 1; got 0"),
        ("hourglass(lift=-1)", "lift: expected at least 0; got -1"),
        ("hourglass(lift=8)", r"lift: expected more than the width \(8\), or 0; got 8"),
    ],
)
def test_refuses_what_is_no_hourglass(make_block, spec, message):
    with pytest.raises(ReslabError, match=message):
        make_block(spec, mixer="attention(heads=2)")
