import jax.numpy as jnp
import numpy as np

from reslab.nn.mixers.short_convolution import GatedShortConvolution

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def converted(get, offset):
    """Parameters of `transformers`' Lfm2ShortConv."""
    del offset
    names = ("input_gate", "gate", "value")
    kernels = np.split(get("in_proj.weight"), 3)
    tree = {n: {"kernel": k.T} for n, k in zip(names, kernels, strict=True)}
    return tree | {
        "value_convolution": {"taps": get("conv.weight")[:, 0, ::-1].T},
        "output": {"kernel": get("out_proj.weight").T},
    }


def test_golden_layer(golden, assert_golden):
    module = GatedShortConvolution(**DOUBLE)
    assert_golden(module, golden("short_convolution_layer"), converted)


def test_its_state_is_two_tokens():
    assert GatedShortConvolution().init_state(3, 100, 8)["value"].shape == (3, 2, 8)
