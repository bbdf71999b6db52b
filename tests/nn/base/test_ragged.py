"""Rows of different lengths, against a loop over rows."""

import jax.numpy as jnp
import numpy as np

from reslab.nn.base import ragged

IS_REAL = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
CACHE = np.arange(4 * 3 * 2).reshape(4, 3, 2)
NEW = 100 + np.arange(4 * 4 * 2).reshape(4, 4, 2)


def test_real_tokens_are_appended_and_padding_goes_before():
    found = np.asarray(ragged.append(CACHE, NEW, jnp.asarray(IS_REAL)))
    assert found.shape == (4, 7, 2)
    for row in range(4):
        wanted = np.concatenate([CACHE[row], NEW[row, IS_REAL[row]]])
        np.testing.assert_array_equal(found[row, 7 - len(wanted) :], wanted)


def test_the_order_of_tokens_is_restored():
    joined = ragged.append(CACHE, NEW, jnp.asarray(IS_REAL))
    found = np.asarray(ragged.restore_order(joined[:, -4:], jnp.asarray(IS_REAL)))
    np.testing.assert_array_equal(found[IS_REAL], NEW[IS_REAL])


def test_without_padding_nothing_moves():
    joined = ragged.append(CACHE, NEW, None)
    np.testing.assert_array_equal(joined, np.concatenate([CACHE, NEW], axis=1))
    np.testing.assert_array_equal(ragged.restore_order(joined[:, -4:], None), NEW)
    np.testing.assert_array_equal(ragged.ranks(None, 2, 3), [[0, 1, 2]] * 2)


def test_ranks_count_the_real_tokens():
    found = ragged.ranks(ragged.real_tokens(jnp.asarray([[0, 2, 0, 1]])), 1, 4)
    np.testing.assert_array_equal(found, [[-1, 0, 0, 1]])
