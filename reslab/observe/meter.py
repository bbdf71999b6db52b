"""Speed of a run: tokens per second, time per step, share of the peak."""

import contextlib
import time
import types
from collections.abc import Callable, Iterator, Mapping

# Dense bfloat16 FLOP/s of one JAX device, by `device.device_kind`. TPU figures are
# those of the Cloud TPU "system architecture" pages (v2: Jouppi et al., 2020,
# doi:10.1145/3360307), halved where a device is one of the chip's two cores (v2,
# v3, 7x). GPU figures are those of NVIDIA's data sheets, without sparsity.
PEAK_FLOPS: Mapping[str, float] = types.MappingProxyType(
    {
        "TPU v2": 46e12 / 2,
        "TPU v3": 123e12 / 2,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5e": 197e12,
        "TPU v5": 459e12,
        "TPU v5p": 459e12,
        "TPU v6 lite": 918e12,
        "TPU v6e": 918e12,
        "TPU7x": 2307e12 / 2,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100-PCIE-40GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA H100 80GB HBM3": 1979e12 / 2,
        "NVIDIA H100 PCIe": 1513e12 / 2,
        "NVIDIA H100 NVL": 1671e12 / 2,
        "NVIDIA H200": 1979e12 / 2,
        "NVIDIA H200 NVL": 1671e12 / 2,
    }
)


class Meter:
    """Measures the steps of one run, the first excepted: it compiles.

        mfu = units per second * FLOPs per unit / (devices * peak FLOP/s)

    JAX runs ahead of Python, so `read` after waiting for a result of the last
    counted step; the clock is only as true as that wait.

    Args:
      units_per_step: Units (tokens, images) that one step trains on, over all
        devices.
      flops_per_unit: FLOPs of the training step divided by its units.
      device_kind: `jax.devices()[0].device_kind`; of a kind that is not in
        `PEAK_FLOPS` no `mfu` is reported.
      device_count: Number of devices of the run.
      clock: Seconds from any origin.
      unit: What the units are called.
    """

    def __init__(
        self,
        units_per_step: int,
        flops_per_unit: float,
        device_kind: str,
        device_count: int,
        clock: Callable[[], float] = time.perf_counter,
        unit: str = "tokens",
    ):
        self._unit = unit
        self._units_per_step = units_per_step
        peak = PEAK_FLOPS.get(device_kind)
        self._mfu_per_rate = flops_per_unit / (peak * device_count) if peak else None
        self._clock = clock
        self._created = clock()
        self._steps = 0  # Counted after the first.
        self._began: float | None = None  # The end of the first step.
        self._read_at = 0.0
        self._read_steps = 0

    def step(self) -> None:
        """Counts one finished step."""
        if self._began is None:
            self._began = self._read_at = self._clock()
        else:
            self._steps += 1

    def read(self) -> dict[str, float]:
        """The averages since the last read.

        Returns:
          `elapsed_seconds`, and once a second step is through
          `tokens_per_second`, `step_seconds` and, on a known chip, `mfu`.
        """
        now = self._clock()
        rates = {"elapsed_seconds": now - self._created}
        steps = self._steps - self._read_steps
        if steps and now > self._read_at:
            rates |= self._rates((now - self._read_at) / steps)
            self._read_at, self._read_steps = now, self._steps
        return rates

    def average(self) -> dict[str, float]:
        """The averages since the first step was through, like those of `read`."""
        if self._began is None or not self._steps:
            return {}
        return self._rates((self._clock() - self._began) / self._steps)

    def _rates(self, step_seconds: float) -> dict[str, float]:
        per_second = self._units_per_step / step_seconds
        rates = {f"{self._unit}_per_second": per_second, "step_seconds": step_seconds}
        if self._mfu_per_rate is not None:
            rates["mfu"] = per_second * self._mfu_per_rate
        return rates

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the rates what is done inside: evaluation, sampling."""
        begin = self._clock()
        yield
        if self._began is not None:
            pause = self._clock() - begin
            self._began += pause
            self._read_at += pause


def duration(seconds: float) -> str:
    """Writes a time span for people.

    >>> duration(7.4), duration(200), duration(7260)
    ('7s', '3m20s', '2h01m')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
