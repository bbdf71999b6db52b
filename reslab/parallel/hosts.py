"""What has to be set before JAX wakes up."""

import os

import jax


def configure_cpu(devices: int) -> None:
    """Makes JAX see a CPU as that many devices; call before the first array.

    XLA's in-process collectives block a thread of its pool for each device. With
    no more threads than cores they wait for each other for ever (observed with
    two devices on two cores), so the pool is made larger than both.

    Args:
      devices: Number of CPU devices. Nothing changes where XLA_FLAGS already
        sets their number.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if devices > 1:
        # XLA reads the size of its pool from here.
        os.environ.setdefault("NPROC", str(max(8, 4 * devices, os.cpu_count() or 1)))
        jax.config.update("jax_num_cpu_devices", devices)
