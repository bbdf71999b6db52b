import jax
import numpy as np

PARTS = {"mixer": "attention(heads=2)", "ffn": "swiglu(hidden=12)"}


def test_equation(make_block, apply_block, parts, features):
    block, params = make_block("parallel", **PARTS)
    norm, mix, feed = parts(params)
    h = norm("joint", features)
    wanted = features + mix(h) + feed("ffn", h)
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_has_one_norm_and_one_sublayer(make_block):
    block, params = make_block("parallel", **PARTS)
    assert block.sublayers == 1
    assert params.keys() == {"mixer", "ffn", "joint_placement"}


def test_without_a_mixer_it_is_the_feed_forward_sublayer(
    make_block, apply_block, silent, features
):
    alone = {"ffn": "swiglu(hidden=12)", "mixer": silent}
    block, params = make_block("parallel", **alone)
    standard, _ = make_block("standard", **alone)
    renamed = {"ffn": params["ffn"], "ffn_placement": params["joint_placement"]}
    renamed["mixer_placement"] = jax.tree.map(np.ones_like, params["joint_placement"])
    np.testing.assert_allclose(
        apply_block(block, params, features),
        apply_block(standard, renamed, features),
        rtol=1e-12,
    )
