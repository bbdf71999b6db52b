"""Which kind of device the program being written will run on."""

import jax


def platform() -> str:
    """The platform of the mesh in context, else that of the default devices.

    A mesh may be made of devices that this machine does not have: a program
    compiled ahead of time for a TPU, on a machine without one, takes the TPU
    paths.

    Returns:
      "cpu", "gpu" or "tpu".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
