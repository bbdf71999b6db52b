import numpy as np

from reslab.nn.value_paths.none import OwnValues


def test_values_are_the_own_and_nothing_is_left(call):
    own = np.ones((1, 2, 3, 4), np.float32)
    value, shared = call(OwnValues(), {}, own, own, {"values": 2 * own})
    np.testing.assert_array_equal(value, own)
    assert set(shared) == {"values"}
    assert OwnValues().leaves == ()
