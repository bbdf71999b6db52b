"""The arithmetic on the authors' small vision transformer, layer norm to CRMS."""

import numpy as np
import pytest

from reslab.transforms import _stream

WRITERS = ("patch_linear", "att_out_linear", "mlp_out_linear")
TABLES = ("pos_embedding", "cls_token")
READERS = ("att_in_linear", "mlp_in_linear", "cls_head_linear")


@pytest.fixture(params=["dev"])
def data(golden, request):
    arrays = golden("pre_rms_conversion")
    prefix = f"{request.param}_"
    return {key.removeprefix(prefix): value for key, value in arrays.items()}


def kernel(data, name):
    """A weight (outputs, inputs) of theirs as a kernel (inputs, outputs) of ours."""
    return np.swapaxes(data[f"{name}_weight"], -1, -2)


def assert_same(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WRITERS)
def test_projections_into_the_stream(data, name):
    centred = _stream.recentre(kernel(data, name))
    bias = _stream.recentre(data[f"{name}_bias"])
    assert_same(centred, kernel(data, f"zm_{name}"))
    assert_same(bias, data[f"zm_{name}_bias"])
    assert_same(_stream.compress_writer(centred), kernel(data, f"compressed_{name}"))
    assert_same(_stream.compress_writer(bias), data[f"compressed_{name}_bias"])


@pytest.mark.parametrize("name", TABLES)
def test_tables(data, name):
    centred = _stream.recentre(data[name])
    assert_same(centred, data[f"zm_{name}"])
    assert_same(_stream.compress_writer(centred), data[f"compressed_{name}"])


@pytest.mark.parametrize("name", READERS)
def test_projections_out_of_the_stream(data, name):
    weight = kernel(data, name)
    actual = _stream.compress_reader(weight, weight.ndim - 2)
    assert_same(actual, kernel(data, f"compressed_{name}"))
