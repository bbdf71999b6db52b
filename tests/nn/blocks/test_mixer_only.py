import numpy as np

from reslab.nn.blocks.mixer_only import MixerOnlyBlock


def test_equation(make_block, apply_block, parts, features):
    block, params = make_block("mixer_only", mixer="attention(heads=2)")
    assert params.keys() == {"mixer", "mixer_placement"}
    norm, mix, _ = parts(params)
    wanted = features + mix(norm("mixer", features))
    found = apply_block(block, params, features)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_flops_are_those_of_the_mixer():
    block = MixerOnlyBlock(ffn="experts")
    alone = block.unbound_mixer.mixing_flops(16, 8)
    assert block.mixing_flops(16, 8) == alone > 0
