import jax
import jax.numpy as jnp
import numpy as np

from reslab.train.step import gradient_in_parts, step_key


def test_every_part_draws_random_numbers_of_its_own():
    def objective(tree, gradient_stats, batch_stats, batch, total, key):
        del gradient_stats, batch_stats
        draw = jax.random.uniform(key)
        loss = jnp.sum(tree * batch["loss_mask"]) / total
        return loss, ({"a": draw, "b": draw**2}, {})

    batch = {"loss_mask": jnp.ones((8, 2))}
    key = step_key(0, jnp.asarray(3, jnp.int32))
    run = gradient_in_parts(objective, 4)
    _, _, sums = jax.jit(run)(jnp.ones(()), {}, batch, key)
    variance = sums["b"] / 4 - (sums["a"] / 4) ** 2
    assert variance > 1e-3
    _, _, again = run(jnp.ones(()), {}, batch, key)
    np.testing.assert_allclose(again["a"], sums["a"], rtol=1e-6)


def test_the_key_of_a_step_is_one_of_seed_and_step_alone():
    keys = [
        tuple(np.asarray(jax.random.key_data(step_key(seed, jnp.asarray(step)))))
        for seed in (0, 1)
        for step in (0, 1, 0)
    ]
    assert len(set(keys)) == 4
    assert keys[0] == keys[2]
