import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.layout import Layout
from reslab.optim.normuon import add_cautious_decay, build, scale_by_neuron


def test_evening_out_is_the_authors(golden):
    arrays = golden("normuon")
    layout = Layout("matrix", (0,), (2,), (1,))  # As there: (stack, outputs, inputs).
    even = scale_by_neuron(0.95, {"tall": layout, "wide": layout})
    state = None
    for k in (1, 2, 3):
        given = {
            leaf: jnp.asarray(arrays[f"dev_v{k}/{leaf}"], jnp.float32)
            for leaf in ("tall", "wide")
        }
        state = even.init(given) if state is None else state
        found, state = even.update(given, state)
        for leaf in given:
            np.testing.assert_allclose(
                found[leaf], arrays[f"dev_out{k}/{leaf}"], atol=1e-5
            )
            np.testing.assert_allclose(
                state.squares[leaf], arrays[f"dev_buf{k}/{leaf}"], atol=1e-6
            )


def test_decay_is_cautious():
    decay = add_cautious_decay(0.5)
    u, p = jnp.asarray([1.0, -1.0, 0.0]), jnp.asarray([2.0, 2.0, 2.0])
    found, _ = decay.update(u, decay.init(p), p)
    np.testing.assert_array_equal(found, [2.0, -1.0, 1.0])


def test_every_neuron_moves_as_far():
    x = {"w": jax.random.normal(jax.random.key(0), (6, 20))}
    made = build(1.0, products="float32", b2=0.0)
    updates, _ = made.update(x, made.init(x), x)
    lengths = np.linalg.norm(updates["w"], axis=0)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
