import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.positions.rope import RotaryPosition


def oracle(x, positions, base):
    """Rotates complex numbers, whose imaginary parts are the second half."""
    half = x.shape[-1] // 2
    number = x[..., :half] + 1j * x[..., half:]
    frequency = base ** (-np.arange(half) / half)
    number = number * np.exp(1j * positions[..., None, None] * frequency)
    return np.concatenate([number.real, number.imag], axis=-1)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_equation(x64, base):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8))
    positions = rng.integers(0, 1000, size=(2, 5))
    y = RotaryPosition(base=base).rotate(x, positions)
    np.testing.assert_allclose(y, oracle(x, positions, base), rtol=0, atol=1e-10)


def test_scores_depend_on_the_distance_and_lengths_stay(x64):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, 8))
    rope = RotaryPosition()

    def score(t, s):
        turned = (
            rope.rotate(vector, np.full((1, 1), place))
            for vector, place in ((query, t), (key, s))
        )
        return float(jnp.vdot(*turned))

    assert score(7, 3) == pytest.approx(score(1004, 1000), abs=1e-9)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-3)
    turned = rope.rotate(query, np.full((1, 1), 123))
    assert float(jnp.linalg.norm(turned)) == pytest.approx(np.linalg.norm(query))


def test_position_zero_is_left_alone():
    x = np.random.default_rng(0).normal(size=(1, 2, 1, 4)).astype(np.float32)
    y = RotaryPosition().rotate(x, np.zeros((1, 2), np.int32))
    np.testing.assert_array_equal(y, x)


def test_angles_are_float32_for_bfloat16():
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    y = RotaryPosition().rotate(x, np.full((1, 1), 1001))
    wanted = oracle(np.ones((1, 1, 1, 4)), np.full((1, 1), 1001), 10_000.0)
    np.testing.assert_allclose(np.asarray(y, np.float32), wanted, atol=6e-3)


def test_refuses_an_odd_head():
    with pytest.raises(ReslabError, match="head_dim: expected even; got 3"):
        RotaryPosition().rotate(np.ones((1, 1, 1, 3)), np.zeros((1, 1)))


def test_a_fraction_leaves_the_other_features_alone(x64):
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(1, 5, 2, 8)), np.arange(5)[None]
    y = RotaryPosition(fraction=0.5).rotate(x, positions)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(
        y[..., :4], RotaryPosition().rotate(x[..., :4], positions)
    )
    with pytest.raises(
        ReslabError, match=r"head_dim \* fraction: expected even; got 3"
    ):
        RotaryPosition(fraction=0.4).rotate(x, positions)


def test_linear_scaling_is_a_slower_position(x64):
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 8))
    slow = RotaryPosition(scaling="linear", factor=4.0).rotate(x, np.arange(5)[None])
    wanted = oracle(x, np.arange(5)[None] / 4, 10_000.0)
    np.testing.assert_allclose(slow, wanted, atol=1e-12)


def test_llama3_scaling_by_wavelength(x64):
    rope = RotaryPosition(
        base=5e5, scaling="llama3", factor=8.0, low=1.0, high=4.0, original_length=64
    )
    size, old = 16, 64
    found = rope._frequencies(size, jnp.float64)
    for index, frequency in enumerate(5e5 ** (-np.arange(size // 2) / (size // 2))):
        wavelength = 2 * np.pi / frequency
        if wavelength > old / 1.0:
            wanted = frequency / 8
        elif wavelength < old / 4.0:
            wanted = frequency
        else:
            s = (old / wavelength - 1) / 3
            wanted = (1 - s) * frequency / 8 + s * frequency
        assert float(found[index]) == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ReslabError, match=r"high: expected above low \(4\); got 4"):
        RotaryPosition(scaling="llama3", low=4.0).rotate(
            np.ones((1, 1, 1, 4)), np.zeros((1, 1))
        )


def test_interleaved_pairs_are_halves_in_another_order(x64):
    x, positions = (
        np.random.default_rng(0).normal(size=(1, 5, 2, 8)),
        np.arange(5)[None],
    )
    order = [0, 2, 4, 1, 3, 5, 6, 7]
    found = RotaryPosition(is_interleaved=True, fraction=0.75).rotate(x, positions)
    wanted = RotaryPosition(fraction=0.75).rotate(x[..., order], positions)
    np.testing.assert_array_equal(found[..., order], wanted)
