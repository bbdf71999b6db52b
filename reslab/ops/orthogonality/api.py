"""Distance of linear maps from orthogonal ones (Wang et al., 2020)."""

import chex
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def convolution_orthogonality(
    kernel: jax.Array, stride: int = 1, padding: int | None = None
) -> jax.Array:
    """Frobenius distance of a convolution's matrix from orthogonal rows.

        loss = || Conv(K, K, padding=P, stride=S) - I ||_F,  P = floor((k-1)/S) S

    The kernel is convolved with itself as if it were a batch of images: what comes
    out are the inner products of all pairs of overlapping shifts of all filters. I
    is the identity over filters at shift zero.

    The authors' code takes padding 1 everywhere. For a 3 x 3 kernel with stride 1
    that leaves out shifts of 2, with stride 2 the shift zero itself: an exactly
    orthogonal kernel then costs sqrt(filters). `padding=1` gives their numbers.

    Reference: Wang et al., 2020, https://arxiv.org/abs/1911.12207, Eq. 7-8. Tested
    against the authors' code, with its padding and with the paper's.

    Args:
      kernel: (height, width, inputs, outputs), height and width equal.
      stride: Stride of the convolution.
      padding: The paper's if None.

    Returns:
      The distance, a scalar in the dtype of the kernel, at least float32.

    Raises:
      AssertionError: If the kernel is not square, or has other axes.
    """
    size = kernel.shape[0]
    chex.assert_shape(kernel, (size, size, None, None))
    kernel = jnp.asarray(kernel, statistics_dtype(kernel.dtype))
    if padding is None:
        padding = (size - 1) // stride * stride
    # Outputs as images: (outputs, height, width, inputs).
    images = jnp.transpose(kernel, (3, 0, 1, 2))
    products = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    centre = products.shape[1] // 2
    identity = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    return _norm(products.at[:, centre, centre].add(-identity))


def column_orthogonality(kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Frobenius distance of a convolution's matrix from orthogonal columns.

        loss = || C C[:, centre]^T - I ||_F,    C the matrix, a row for each pixel

    for the pixel in the centre of an image just large enough for all that overlaps it.
    With stride 1 this is the distance of rows, `convolution_orthogonality`, of the
    kernel with inputs and outputs exchanged; with larger strides pixels differ, and the
    others are left out, as in the authors' code. Rows and columns differ by a constant
    once squared, so the one of fewer products may stand for both.

    Reference: Wang et al., 2020, https://arxiv.org/abs/1911.12207, Eq. 9-10. Tested
    against the authors' code, stride 1.

    Args:
      kernel: (height, width, inputs, outputs), height and width equal.
      stride: Stride of the convolution.

    Returns:
      The distance, a scalar in the dtype of the kernel, at least float32.

    Raises:
      AssertionError: If the kernel is not square, or has other axes.
    """
    size, inputs = kernel.shape[0], kernel.shape[2]
    chex.assert_shape(kernel, (size, size, inputs, None))
    kernel = jnp.asarray(kernel, statistics_dtype(kernel.dtype))
    width = stride * (size - 1) + size
    pixels = jnp.zeros((inputs, width, width, inputs), kernel.dtype)
    centre = width // 2
    pixels = pixels.at[:, centre, centre].set(jnp.eye(inputs, dtype=kernel.dtype))

    def convolved(images):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    columns = convolved(pixels)
    (products,) = jax.linear_transpose(convolved, pixels)(columns)
    return _norm(products - pixels)


def matrix_orthogonality(kernel: jax.Array) -> jax.Array:
    """Frobenius distance of the Gram matrix of a kernel's shorter side from one.

        loss = || W W^T - I ||_F, with W the kernel as (inputs, outputs) or transposed

    For 1 x 1 convolutions and projections, and for any convolution whose stride is
    its size.

    Reference: Wang et al., 2020, https://arxiv.org/abs/1911.12207, Section 3.3.
    Tested against the authors' code.

    Args:
      kernel: (..., outputs); all other axes are inputs.

    Returns:
      The distance, a scalar in the dtype of the kernel, at least float32.
    """
    kernel = jnp.asarray(kernel, statistics_dtype(kernel.dtype))
    matrix = kernel.reshape(-1, kernel.shape[-1])
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    gram = matrix.T @ matrix
    return _norm(gram - jnp.eye(gram.shape[0], dtype=gram.dtype))


def _norm(difference: jax.Array) -> jax.Array:
    # The root has no derivative at zero; this offset does not change the result.
    return jnp.sqrt(jnp.sum(jnp.square(difference)) + 1e-24)
