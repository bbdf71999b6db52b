"""Cost without the chip: steps compiled for an absent TPU."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters
from reslab.observe.flops import count_flops
from reslab.observe.meter import PEAK_FLOPS
from reslab.parallel.aot.cost import Cost
from reslab.parallel.aot.estimate import estimate, link_seconds
from reslab.parallel.aot.program import Memory, OutOfMemory, compile_program
from reslab.parallel.aot.topology import Topology, topology
from reslab.parallel.mesh import (
    batch_parts,
    batch_sharding,
    device_bytes,
    make_mesh,
    use_mesh,
)
from reslab.train.cost import on_a_plain_device, training_flops_per_unit
from reslab.train.evaluate import jit_sums, make_sums
from reslab.train.generate import continue_prompts
from reslab.train.state import Setup, check_batch, make_setup
from reslab.train.step import jit_step, make_step

# Prefixes of the names of attention kernels.
ATTENTION = "splash_mha"


@dataclasses.dataclass(frozen=True)
class Report:
    """Cost of one step of a config, on each device.

    Attributes:
      name: What to call the config.
      work: "train", "eval" or "generate", which is one step for all tokens.
      mesh: Size of each mesh axis.
      parameters: Number of parameters of the model.
      needed: Bytes of memory that a step needs.
      available: Bytes of memory that a device has.
      remedies: Changes of the config that need less memory.
      state: Bytes of parameters, and in training of what else it keeps of them.
      counted_flops: FLOPs of the matrix products, recomputation included.
      model_flops: FLOPs without it, as in model FLOPs utilization.
      peak_flops: FLOPs that a device does in a second.
      memory: What memory holds, by kind; None if the compiler found too little.
      compile_seconds: Time to compile on this machine; None like `memory`.
      is_cached: Whether an earlier process took it.
      cost: What the compiled program does; None if its text cannot be read.
      estimated_seconds: Estimate of a step; None like `cost`.
      hidden_seconds: The same if all collectives went on beside other work, or what
        they take at the full rate of their links, if that is longer.
    """

    name: str
    work: str
    mesh: Mapping[str, int]
    parameters: int
    needed: int
    available: int
    remedies: tuple[str, ...]
    state: int
    counted_flops: float
    model_flops: float
    peak_flops: float
    memory: Memory | None = None
    compile_seconds: float | None = None
    is_cached: bool = False
    cost: Cost | None = None
    estimated_seconds: float | None = None
    hidden_seconds: float | None = None

    @property
    def is_fitting(self) -> bool:
        """Returns whether the step fits a device."""
        return self.needed <= self.available

    @property
    def estimated_mfu(self) -> tuple[float, float] | None:
        """Model FLOPs utilization as scheduled, and with all collectives hidden."""
        if self.estimated_seconds is None or self.hidden_seconds is None:
            return None
        ideal = self.model_flops / self.peak_flops
        return ideal / self.estimated_seconds, ideal / self.hidden_seconds

    @property
    def verdict(self) -> str:
        """Says that the step fits, or by how much it does not and what to try."""
        if self.is_fitting:
            return "fits"
        over = self.needed - self.available
        kept = "parameters" if self.work != "train" else "parameters and optimizer"
        return (
            f"does not fit: needs {size(self.needed)} of {size(self.available)}, "
            f"over by {size(over)}; {kept} are {size(self.state)}, the rest is "
            f"activations; try: {' or '.join(self.remedies)}"
        )


def compile_configs(
    named: Mapping[str, ConfigDict],
    topology_name: str,
    tell: Callable[[str], None] = lambda line: None,
    *,
    work: str = "train",
    is_fitting: bool = False,
) -> list[Report]:
    """Compiles steps of configs for a TPU slice; runs nothing.

    No data are loaded; a language model's tokenizer is.

    Args:
      named: Configs by the names that they have in the report.
      topology_name: Such as `v5e:2x4`.
      tell: Is given a line as each config begins.
      work: "train" is a training step; "eval" an evaluation step, of `eval.batch`
        rows; "generate" continues this many prompts of half a window to its end, with
        parameters where training has them.
      is_fitting: Whether, where a step does not fit, its remedies are compiled one
        after the other, until it does.

    Returns:
      A report for each config.

    Raises:
      ReslabError: On an unknown slice, a config that is wrong or does not fit the
        slice, or without libtpu; before anything is compiled.
    """
    for config in named.values():
        configs.check(config)
    # Nothing runs, but JAX would search for an accelerator.
    platforms = "jax_platforms"
    if not getattr(jax.config, platforms):
        jax.config.update(platforms, "cpu")
    target = topology(topology_name)
    prepared = []
    for name, config in named.items():
        mesh = make_mesh(config.mesh, target.devices)
        setup = make_setup(config, mesh)
        check_batch(config, mesh)
        if work == "generate" and setup.task.unit != "tokens":
            raise ReslabError(
                "--what generate", expected="a language model", got=config.model.name
            )
        prepared.append((name, setup))
    reports = []
    for name, setup in prepared:
        tell(f"compiling {name} for {topology_name} ...")
        reports.append(_report(name, setup, target, work))
        if is_fitting and not reports[-1].is_fitting:
            reports += _fitted(reports[-1], setup, target, tell)
    return reports


def _fitted(
    report: Report, setup: Setup, target: Topology, tell: Callable[[str], None]
) -> list[Report]:
    """The report of the config with the fewest remedies that fits; [] for none."""
    text = configs.canonical_json(setup.config)
    config, changes = configs.from_json(text, "", is_inert=True), []
    while remedy := next(iter(_remedies(setup, report.work)), None):
        configs.update(config, [configs.parse_override(part) for part in remedy])
        changes += remedy
        name = f"{report.name}, {' '.join(changes)}"
        setup = make_setup(config, make_mesh(config.mesh, target.devices))
        tell(f"compiling {name} ...")
        found = _report(name, setup, target, report.work)
        if found.is_fitting:
            return [found]
    return []


def _step(setup: Setup, work: str) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """A step as a function, the same as it is jitted, and the shapes it is given."""
    config, shapes = setup.config, setup.shapes
    if work == "train":
        batch = setup.task.batch_shapes(config.data.batch)
        return make_step(setup), jit_step(setup), (shapes, batch)
    rows = batch_sharding(setup.mesh)
    if work == "eval":
        batch = {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows)
            for key, leaf in setup.task.batch_shapes(config.eval.batch).items()
        }
        return make_sums(setup), jit_sums(setup), (shapes.variables, batch)
    half = config.data.length // 2
    prompt = jax.ShapeDtypeStruct((config.eval.batch, half), np.int32, sharding=rows)

    def generate(variables, prompt):
        new = config.data.length - half
        key = jax.random.key(config.seed)
        return continue_prompts(setup.model, variables, prompt, new, key)

    return generate, jax.jit(generate), (shapes.variables, prompt)


def _report(name: str, setup: Setup, target: Topology, work: str) -> Report:
    config, mesh, chip = setup.config, setup.mesh, target.chip
    devices = mesh.devices.size
    _, jitted, shapes = _step(setup, work)
    with use_mesh(mesh):
        lowered = jitted.lower(*shapes)
    counted = model_flops = plain_flops(setup, work)
    if work == "train":
        units = config.data.batch * setup.task.units_per_example
        per_unit = training_flops_per_unit(setup)
        model_flops = per_unit * units
    report = Report(
        name=name,
        work=work,
        mesh=dict(mesh.shape),
        parameters=count_parameters(setup.shapes.params),
        needed=0,
        available=chip.hbm_bytes,
        remedies=tuple(map(" with ".join, [*_remedies(setup, work), _LAST])),
        state=device_bytes(shapes[0]),
        counted_flops=counted / devices,
        model_flops=model_flops / devices,
        peak_flops=PEAK_FLOPS[target.devices[0].device_kind],
    )
    try:
        program = compile_program(lowered, f"{target.name} {dict(mesh.shape)}")
    except OutOfMemory as exceeded:
        return dataclasses.replace(
            report, needed=exceeded.needed, available=exceeded.available
        )
    report = dataclasses.replace(
        report,
        needed=program.memory.peak,
        memory=program.memory,
        compile_seconds=program.compile_seconds,
        is_cached=program.is_cached,
    )
    if program.text is None:
        return report
    shares = {}
    if setup.task.unit == "tokens":
        shares = {ATTENTION: causal_share(config.data.length)}
    cost = estimate(program.text, target, mesh, shares=shares)
    alone = estimate(program.text, target, mesh, shares=shares, is_hidden=True).seconds
    wires = sum(link_seconds(mesh, chip, *one) for one in cost.wires.items())
    return dataclasses.replace(
        report,
        cost=cost,
        estimated_seconds=cost.seconds,
        hidden_seconds=max(alone, wires),
    )


def causal_share(length: int) -> float:
    """Blocks of a causal mask that are not empty, of all that attention's kernels pass.

    >>> causal_share(1024)
    0.75
    """
    blocks = max(1, length // 512)
    return (blocks + 1) / (2 * blocks)


def plain_flops(setup: Setup, work: str = "train") -> int:
    """FLOPs of a step over all devices, with no kernel in it.

    A TPU kernel need not say what it computes (JAX's attention does not). On a
    device without kernels the same step is plain products, which are counted.
    """
    if getattr(setup.model, "kernels", "auto") != "auto":
        model = setup.model.clone(kernels="reference")
        setup = dataclasses.replace(setup, model=model)
    step, _, shapes = _step(setup, work)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes
    )
    with on_a_plain_device():
        return count_flops(step, *shapes)


_LAST = ("a larger slice",)


def _remedies(setup: Setup, work: str) -> list[tuple[str, ...]]:
    """Changes of the config that need less memory, the cheapest first."""
    config, mesh, found = setup.config, setup.mesh.shape, []
    rows = batch_parts(setup.mesh)
    if mesh["data"] > 1:
        found.append(("mesh.data=1", "mesh.fsdp=-1"))
    if work != "train":
        if config.eval.batch % (2 * rows) == 0:
            found.append((f"eval.batch={config.eval.batch // 2}",))
        return found
    if config.model.remat != "full":
        found.append(("model.remat=full",))
    parts = 2 * config.train.accumulate
    if config.data.batch % (rows * parts) == 0:
        found.append((f"train.accumulate={parts}",))
    return found


def size(count: float) -> str:
    """Writes bytes for people.

    >>> size(512), size(3 * 2**20), size(26.05 * 2**30)
    ('512 B', '3.00 MiB', '26.05 GiB')
    """
    units = ["TiB", "GiB", "MiB", "KiB", "B"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop()
    return f"{count:.0f} B" if units[-1] == "B" else f"{count:,.2f} {units[-1]}"
