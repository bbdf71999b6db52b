import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.ops.orthogonality.api import (
    column_orthogonality,
    convolution_orthogonality,
    matrix_orthogonality,
)


def golden_kernel(data):
    """Theirs is (outputs, inputs, height, width)."""
    return np.transpose(data["kernel"], (2, 3, 1, 0))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [1, 2])
def test_golden_convolutions(x64, golden, stride, padding):
    data = golden("orth_conv")
    value, gradient = jax.value_and_grad(convolution_orthogonality)(
        golden_kernel(data), stride, padding
    )
    name = f"deconv_s{stride}p{padding}"
    np.testing.assert_allclose(value, data[f"{name}_out"], rtol=1e-9)
    wanted = np.transpose(data[f"{name}_grad_kernel"], (2, 3, 1, 0))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-9)


def test_golden_matrices(x64, golden):
    data = golden("orth_conv")
    value, gradient = jax.value_and_grad(matrix_orthogonality)(golden_kernel(data))
    np.testing.assert_allclose(value, data["orth_out"], rtol=1e-9)
    wanted = np.transpose(data["orth_grad_kernel"], (2, 3, 1, 0))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-9)


def test_golden_columns(x64, golden):
    data = golden("orth_conv")
    value, gradient = jax.value_and_grad(column_orthogonality)(golden_kernel(data))
    np.testing.assert_allclose(value, data["conv_s1_out"], rtol=1e-9)
    wanted = np.transpose(data["conv_s1_grad_kernel"], (2, 3, 1, 0))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-9)


def test_columns_are_the_rows_of_the_exchanged_kernel(x64):
    kernel = np.random.default_rng(2).normal(size=(3, 3, 2, 5))
    exchanged = np.transpose(kernel, (0, 1, 3, 2))
    np.testing.assert_allclose(
        column_orthogonality(kernel), convolution_orthogonality(exchanged), rtol=1e-9
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_columns_by_the_matrix_of_the_convolution(x64, stride):
    """Every pixel as an image of its own, and all products with the central ones."""
    kernel = np.random.default_rng(3).normal(size=(3, 3, 2, 4))
    width = 2 * stride + 3
    pixels = np.eye(width * width * 2).reshape(-1, width, width, 2)
    places = range(0, width - 2, stride)
    matrix = np.stack(
        [
            np.einsum("nijc,ijco->no", pixels[:, y : y + 3, x : x + 3], kernel)
            for y in places
            for x in places
        ],
        axis=1,
    ).reshape(len(pixels), -1)
    centre = 2 * (width * width // 2) + np.arange(2)
    difference = matrix @ matrix[centre].T - np.eye(len(pixels))[:, centre]
    wanted = np.linalg.norm(difference)
    np.testing.assert_allclose(column_orthogonality(kernel, stride), wanted, rtol=1e-9)


def orthogonal_centre(outputs, inputs, size=3):
    kernel = np.zeros((size, size, inputs, outputs), np.float32)
    rows, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(inputs, outputs)))
    kernel[size // 2, size // 2] = rows
    return kernel


@pytest.mark.parametrize("stride", [1, 2])
def test_the_papers_padding_lets_an_orthogonal_kernel_be(stride):
    kernel = orthogonal_centre(4, 6)
    assert convolution_orthogonality(kernel, stride) < 1e-6
    # The authors' default looks for it at another shift where the stride is 2.
    elsewhere = convolution_orthogonality(kernel, stride, 1)
    np.testing.assert_allclose(elsewhere, 2.0 if stride == 2 else 0.0, atol=1e-6)


def test_turning_the_filters_changes_nothing(x64):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 5, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    one, other = (convolution_orthogonality(k) for k in (kernel, kernel @ turn))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_one_by_one_convolution_is_a_matrix(x64):
    kernel = np.random.default_rng(1).normal(size=(1, 1, 6, 4))
    np.testing.assert_allclose(
        convolution_orthogonality(kernel), matrix_orthogonality(kernel), rtol=1e-12
    )


def test_there_is_a_derivative_where_the_distance_vanishes():
    kernel = jnp.asarray(orthogonal_centre(4, 6))
    assert np.all(np.isfinite(jax.grad(convolution_orthogonality)(kernel)))
