import jax
import numpy as np

from reslab.core.trees import count_parameters

PARTS = {"mixer": "attention(heads=2)", "ffn": "swiglu(hidden=12)"}


def test_equation(make_block, apply_block, parts, features):
    block, params = make_block("macaron", **PARTS)
    norm, mix, feed = parts(params)
    wanted = features
    wanted = wanted + feed("first_ffn", norm("first_ffn", wanted)) / 2
    wanted = wanted + mix(norm("mixer", wanted))
    wanted = wanted + feed("second_ffn", norm("second_ffn", wanted)) / 2
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_is_the_standard_layer_without_the_first_half(
    make_block, apply_block, features
):
    block, params = make_block("macaron(step=1.0)", **PARTS)
    params["first_ffn"] = jax.tree.map(np.zeros_like, params["first_ffn"])
    standard, _ = make_block("standard", **PARTS)
    renamed = {
        name.replace("second_", ""): leaf
        for name, leaf in params.items()
        if not name.startswith("first_")
    }
    np.testing.assert_allclose(
        apply_block(block, params, features),
        apply_block(standard, renamed, features),
        rtol=1e-12,
    )


def test_half_steps_are_half_as_wide_unless_told_otherwise(make_block):
    def parameters(spec, ffn):
        block, params = make_block(spec, mixer="attention(heads=2)", ffn=ffn)
        assert block.sublayers == (3 if spec == "macaron" else 2)
        return count_parameters([v for k, v in params.items() if k.endswith("ffn")])

    assert parameters("macaron", "gelu") == parameters("standard", "gelu")
    assert parameters("macaron", "gelu(hidden=24)") == 2 * parameters(
        "standard", "gelu(hidden=24)"
    )
