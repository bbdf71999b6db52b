"""The processes of a run: what is set before JAX wakes up, and how they agree."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils


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


def is_writer() -> bool:
    """Whether this process is the one of a run that writes what all share."""
    return jax.process_index() == 0


def agree(is_well: bool) -> bool:
    """Whether all is well in every process; each must ask."""
    if jax.process_count() == 1:
        return is_well
    everyone = multihost_utils.process_allgather(np.asarray(is_well))
    return bool(np.all(everyone))


def wait_for_all(what: str) -> None:
    """Waits until every process has come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
