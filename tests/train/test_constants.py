"""Constants beside parameters: the train state keeps them, checkpoints save them."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.model_state import CONSTANTS
from reslab.core.trees import named_leaves
from reslab.parallel.mesh import make_mesh, place_on, use_mesh
from reslab.train.checkpoint import Checkpoints
from reslab.train.generate import generate
from reslab.train.state import make_setup, restore_variables
from reslab.train.step import make_step

QUANTIZED = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from reslab.core.parameters import constant, parameter
    from reslab.nn.linears.dense import Dense


    def levels(key, shape, dtype):
        return jax.random.randint(key, shape, -127, 128, dtype)


    class Quantized(Dense):
        @nn.compact
        def __call__(self, x):
            inputs = self.inputs_of(x)
            shape, axes = (*inputs, *self.outputs), self.kernel_axes
            kernel = constant(self, "kernel", levels, shape, axes, jnp.int8)
            init = nn.initializers.constant(self.kernel_std(inputs) / 73)
            args = (self.outputs, self.output_axes, self.param_dtype)
            scale = parameter(self, "scale", init, *args)
            y = jnp.tensordot(x, kernel.astype(self.dtype), len(inputs))
            return y * scale.astype(self.dtype).reshape((1, 1, *self.outputs))


    build = Quantized
"""


def test_int8_weights_train_by_their_scales_and_generate(
    tmp_path, small_config, monkeypatch
):
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "int8.py").write_text(textwrap.dedent(QUANTIZED))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small_config(
        model__linear="quantized.int8", model__loop="scan", train__accumulate=2
    )
    setup = make_setup(config, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    begin = jax.device_get(setup.init())
    constants = named_leaves(begin.model_state[CONSTANTS])
    assert {leaf.dtype for leaf in constants.values()} == {jnp.dtype(jnp.int8)}
    batches = setup.task.train_batches()
    losses = []
    with use_mesh(setup.mesh):
        step, state = jax.jit(make_step(setup)), setup.init()
        for _ in range(3):
            state, metrics = step(state, place_on(setup.mesh)(next(batches)))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, state, data_index=24, force=True)
        variables = restore_variables(checkpoints, setup)
    for name, leaf in named_leaves(variables[CONSTANTS]).items():
        np.testing.assert_array_equal(leaf, constants[name], err_msg=name)
    for name, leaf in named_leaves(variables["params"]).items():
        if name.endswith("/scale"):
            assert np.any(leaf != named_leaves(begin.params)[name]), name
    variables = jax.device_get(variables)
    new = generate(setup.model, variables, np.zeros((1, 1), np.int32), 4)
    assert new.shape == (1, 4)
