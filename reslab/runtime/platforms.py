"""Platforms that this machine has, known before JAX looks for them."""

import glob
import importlib.util
import os


def has_tpu_chips() -> bool:
    """Returns whether this machine has TPU chips that JAX may use."""
    chosen = os.environ.get("JAX_PLATFORMS", "")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return ("tpu" in chosen or not chosen) and bool(chips)


def leave_absent_tpus() -> None:
    """Chooses the CPU where libtpu is installed beside no chips and no other plugin.

    JAX would start libtpu first, which prints lines about hosts that it cannot find.
    """
    if os.environ.get("JAX_PLATFORMS") or has_tpu_chips():
        return
    installed = map(importlib.util.find_spec, ("libtpu", "jax_plugins"))
    if [spec is not None for spec in installed] == [True, False]:
        os.environ["JAX_PLATFORMS"] = "cpu"
