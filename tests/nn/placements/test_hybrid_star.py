"""The first layer is pre-norm; the values are in test_goldens.py."""


def test_the_first_layer_has_norms_before_both_sublayers(small_variables):
    names = small_variables(placement="hybrid_star")
    body = "params/layers/body"
    first, others = f"{body}/segment_0/block_0", f"{body}/segment_1/block_0"
    assert names[f"{first}/mixer_placement/input_norm/gain"].shape == (1, 64)
    assert names[f"{first}/ffn_placement/input_norm/gain"].shape == (1, 64)
    assert names[f"{others}/ffn_placement/stream_norm/gain"].shape == (3, 64)
    assert f"{others}/mixer_placement/input_norm/gain" not in names
