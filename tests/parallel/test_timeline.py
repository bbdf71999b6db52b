"""The time of a step, against timelines that are counted by hand.

The chip of these tests moves an array in a microsecond, and has a thousand cycles in
one. `NEAR` arrays lie in the chip and take no time to move.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from reslab.ops.stream_mix import pallas_tpu as stream_mix
from reslab.parallel.aot import kernels
from reslab.parallel.aot.bundles import Cycles, kernel_cycles
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.estimate import estimate
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.timeline import MEMORY, Timeline
from reslab.parallel.aot.topology import CHIPS, topology

SIZE = 4 * 1024 * 128
CHIP = dataclasses.replace(CHIPS["v5e"], clock=1e9, hbm_bandwidth=SIZE * 1e6)
FAR, NEAR = "f32[1024,128]{1,0:T(8,128)}", "f32[1024,128]{1,0:T(8,128)S(1)}"
TOKEN = "u32[]{:S(2)}"

PRODUCT = f"""%product (a: f32[1024,128]) -> f32[1024,128] {{
  %a = {NEAR} parameter(0)
  ROOT %sum = {NEAR} dot(%a, %a)
}}

"""


def arrays(count):
    """So many of them as one, in memory and in the chip."""
    return [part.replace("1024,128", f"{1024 * count},128") for part in (FAR, NEAR)]


def work(name, microseconds, operand="near", result=NEAR):
    """An instruction that computes for so long."""
    return (
        f"%{name} = {result} fusion(%{operand}), kind=kLoop, calls=%product, "
        f'backend_config={{"estimated_cycles":"{1000 * microseconds}"}}'
    )


def copy(name, count):
    """The start and the end of a copy of so many arrays into the chip."""
    far, near = arrays(count)
    return (
        f"%{name} = ({far}, {near}, {TOKEN}) copy-start(%far{count})",
        f"%{name}.done = {near} copy-done(%{name})",
    )


def entry(*lines):
    """A program of these instructions."""
    given = [f"%near = {NEAR} parameter(0)", f"%far = {FAR} parameter(1)"]
    given += [f"%far{n} = {arrays(n)[0]} parameter({n + 1})" for n in range(1, 5)]
    body = "\n".join(f"  {line}" for line in (*given, *lines))
    return f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def taken(*lines, before="", **options):
    """Microseconds of a program, and those that it waits."""
    machine = Machine(CHIP, **options)
    cost = program_cost(PRODUCT + before + entry(*lines), machine)
    return pytest.approx(1e6 * cost.seconds), pytest.approx(1e6 * cost.waited)


# What runs.


def test_what_runs_takes_turns():
    chain = (
        work("one", 3),
        work("two", 5, "one"),
        # Reads an array and writes one: 2 of memory beside 1 of computing.
        work("three", 1, "far", FAR),
    )
    assert taken(*chain) == (3 + 5 + 2, 0)


# Copies beside it.


def test_a_copy_is_hidden():
    start, done = copy("c", 2)
    assert taken(start, work("one", 3), done) == (3, 0)


def test_a_copy_is_waited_for():
    start, done = copy("c", 4)
    # 4 of memory, 3 of them beside what runs.
    assert taken(start, work("one", 3), done, work("two", 2)) == (4 + 2, 1)


def test_nothing_runs_beside_a_copy():
    start, done = copy("c", 4)
    assert taken(work("one", 3), start, done) == (3 + 4, 4)


def test_a_copy_has_what_the_running_work_leaves():
    start, done = copy("c", 4)
    # Of its 3 it moves bytes in 2, so 1 of the copy's 4 is done.
    assert taken(start, work("one", 3, "far", FAR), done) == (3 + 3, 3)


def test_copies_share_the_memory():
    (first, first_done), (second, second_done) = copy("a", 2), copy("b", 2)
    alike = (first, second, work("one", 2))
    # Each has 1 of 2; the first ends when both do.
    assert taken(*alike, first_done, second_done) == (2 + 2, 2)
    # What is asked for between finds both ended, too.
    assert taken(*alike, first_done, work("two", 1), second_done) == (4 + 1, 2)
    (short, short_done), (long, long_done) = copy("a", 1), copy("b", 3)
    # Each has half of 1; the short one ends after another 1, of which both have half.
    unlike = (short, long, work("one", 1), short_done)
    assert taken(*unlike) == (2 + 2, 1 + 2)  # The end waits for what is under way.
    assert taken(*unlike, work("two", 2), long_done) == (2 + 2, 1)


def test_a_slice_counts_what_is_sliced():
    far, near = arrays(4)[0], NEAR
    start = f"%s = (({far}), {near}, s32[]{{:S(2)}}) slice-start(%far4), slice={{}}"
    done = f"%d = {near} slice-done(%s)"
    assert taken(start, done) == (1, 1)


# Loops.


def loop(turns, *lines):
    """A loop, and the instruction that runs it; lines may read %near and %far1..4."""
    names = ["near", "far", *(f"far{n}" for n in range(1, 5))]
    types = [NEAR, FAR, *(arrays(n)[0] for n in range(1, 5))]
    state = f"(s32[], {', '.join(types)})"
    parts = [
        f"%{name} = {kind} get-tuple-element(%b), index={index}"
        for index, (name, kind) in enumerate(zip(names, types, strict=True), 1)
    ]
    handed = ", ".join(f"%{name}" for name in names)
    body = "\n".join(f"  {line}" for line in (*parts, *lines))
    text = f"""%body (b: (s32[])) -> (s32[]) {{
  %b = {state} parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %by = s32[] constant(1)
  %next = s32[] add(%i, %by), backend_config={{"estimated_cycles":"0"}}
{body}
  ROOT %t = {state} tuple(%next, {handed})
}}

%condition (c: (s32[])) -> pred[] {{
  %c = {state} parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant({turns})
  ROOT %less = pred[]{{:S(6)}} compare(%j, %limit), direction=LT
}}

""".replace("s32[]", "s32[]{:S(6)}")
    run = (
        "%begin = s32[]{:S(6)} constant(0)",
        f"%state = {state} tuple(%begin, {handed})",
        f"%w = {state} while(%state), condition=%condition, body=%body",
    )
    return text, run


def test_a_loop_takes_what_its_turns_take():
    start, done = copy("c", 4)
    text, run = loop(5, start, work("one", 3), done)
    assert taken(*run, before=text) == (5 * 4, 5 * 1)


def test_a_copy_goes_on_beside_a_loop():
    start, done = copy("c", 4)
    text, run = loop(5, work("one", 1))
    assert taken(start, *run, done, before=text) == (5, 0)
    text, run = loop(2, work("one", 1))
    assert taken(start, *run, done, before=text) == (4, 2)


def test_what_a_turn_has_started_ends_in_it():
    start, _ = copy("c", 4)
    text, run = loop(5, start, work("one", 3))
    assert taken(*run, before=text) == (5 * 4, 5 * 1)


# Kernels.


def kernel(operand, result):
    return (
        f"%mix.7 = {result} custom-call(%{operand}), "
        'custom_call_target="tpu_custom_call"'
    )


def test_a_kernel_takes_its_schedule_wherever_its_operands_lie():
    cycles = {"mix.7": Cycles(always=2000, guarded=1000)}
    for operand, result in (("near", NEAR), ("far", FAR)):
        line = kernel(operand, result)
        assert taken(line, kernels=cycles) == (3, 0)
        assert taken(line, kernels=cycles, shares={"mix": 0.5}) == (2.5, 0)
        assert taken(line, kernels=cycles, shares={"other": 0.5}) == (3, 0)


def test_a_kernel_takes_its_bytes_where_they_take_longer():
    line = kernel("far4", arrays(4)[0])
    assert taken(line, kernels={"mix.7": Cycles(always=2000)}) == (4 + 4, 0)
    assert taken(line) == (4 + 4, 0)
    assert program_cost(entry(line), Machine(CHIP)).unknown_kernels == 1


def test_a_kernel_hides_a_copy():
    start, done = copy("c", 2)
    cycles = {"mix.7": Cycles(always=3000)}
    assert taken(start, kernel("near", NEAR), done, kernels=cycles) == (3, 0)
    # In memory the kernel moves 2 in its 3, which leaves the copy 1.
    assert taken(start, kernel("far", FAR), done, kernels=cycles) == (4, 1)


def test_a_kernel_is_compiled_alone_with_its_arrays_where_they_lie(monkeypatch):
    told = []

    def compiled(requests):
        told.extend(map(json.loads, requests))
        return [Cycles(1.0)] * len(requests)

    monkeypatch.setattr(kernels, "_compiled", compiled)
    lines = [
        f"%mix.{number} = ({NEAR}, {FAR}) custom-call(%near, %far), "
        'custom_call_target="tpu_custom_call", '
        'backend_config={"flag_configs":[],"custom_call_config":{"body":"hand"}}'
        for number in (7, 8)
    ]
    found = kernels.kernel_cycles(entry(*lines), "v5e")
    assert found == {"mix.7": Cycles(1.0), "mix.8": Cycles(1.0)}
    (request,) = told  # Both are the same.
    assert request["operands"] == request["results"] == [["float32", [1024, 128]]] * 2
    assert request["config"]["custom_call_config"] == {
        "body": "hand",
        "input_memory_space_colors": [
            {"operand_index": 0, "color": 1},
            {"operand_index": 1, "color": 0},
        ],
        "output_memory_space_colors": [
            {"color": 1, "shape_index": [0]},
            {"color": 0, "shape_index": [1]},
        ],
    }


SCHEDULE = """
     0   :  { %s1 = x } /* Start region 1 */
   0x1 LB: > { %s2 = sphi } /* Start region 9 :: iteration index, stage = 1 */
   0x2   : > { %s3 = x /* iteration index, stage = 2 */ }
   0x3   : > { sbr.rel (%p1) target = $region4 }
   0x4   : > { %s4 = x }
   0x5   : > { sbr.rel (%p2) target = $region6 }
   0x6   :  {}
   0x7   : > { %s5 = x } /* Start region 5 */
   0x8 PF: > { %s6 = x } /* Start/End empty region 6 */
   0x9 LB: >> { %s7 = x } /* Start region 7 :: Start region 8 */
   0xa   : >> { %p3 = scmp.ge.s32.totalorder %s7, 3 /* loop exit test */ }
   0xb   : >> { %s8 = x  ;;  %9 = sbr.rel (!%p3) target = $region7 }
   0xc PF: > { %s9 = x } /* Start/End empty region 4 */
   0xd   : > { %p4 = scmp.ge.s32.totalorder %s9, 12 /* loop exit test */ }
   0xe   :  { %10 = sbr.rel (!%p4) target = $region9 }
   0xf   :  { %s10 = x }
"""


def test_a_schedule_is_counted_by_loops_and_conditions():
    """Ten steps in a pipeline of twelve turns, three turns of a loop in each.

    0x1-0x3 and 0xc-0xe are what every turn does: 6. 0x4 and 0x5, 0x8 and the loop of
    0x9-0xb are what a step does: 3 + 3 * 3. 0x6 and 0x7 stand under a condition.
    """
    assert kernel_cycles(SCHEDULE) == Cycles(2 + 12 * 6 + 10 * (3 + 9), 10 * 2)
    unknown = SCHEDULE.replace("%s7, 3 ", "%s7, %s11 ")
    assert kernel_cycles(unknown) == Cycles(2 + 12 * 6 + 10 * (3 + 3), 10 * 2, 1)


# Collectives.

LINKS = {"link_seconds": lambda wire, traffic: 4e-6 * traffic.bytes / SIZE}
GATHER = (
    f"%g = ({NEAR}, {NEAR}) all-gather-start(%near), channel_id=1",
    f"%g.done = {NEAR} all-gather-done(%g)",
)


def test_a_collective_goes_on_beside_what_runs():
    start, done = GATHER
    assert taken(start, work("one", 3), done, **LINKS) == (4, 1)
    assert taken(start, work("one", 5), done, **LINKS) == (5, 0)
    assert taken(start, done, work("one", 5), **LINKS) == (9, 4)
    assert taken(start, done, work("one", 5)) == (5, 0)


def test_links_are_not_the_memory():
    start, done = GATHER
    first, last = copy("c", 3)
    assert taken(start, first, work("one", 3), last, done, **LINKS) == (4, 1)


def test_collectives_over_the_same_axes_share_their_links():
    start, done = GATHER
    again = [line.replace("%g", "%h") for line in GATHER]
    assert taken(start, again[0], work("one", 4), done, again[1], **LINKS) == (8, 4)
    groups = [", replica_groups={{0,1},{2,3}}", ", replica_groups={{0,2},{1,3}}"]
    lines = (start + groups[0], again[0] + groups[1])
    options = LINKS | {"mesh": {"data": 2, "fsdp": 2}}
    assert taken(*lines, work("one", 4), done, again[1], **options) == (4, 0)


def test_a_collective_that_is_not_started_is_waited_for():
    gather = f"%g = {NEAR} all-gather(%near), channel_id=1"
    assert taken(gather, work("one", 3), **LINKS) == (4 + 3, 4)


def test_a_chain_of_fusions_is_waited_for_at_its_end():
    gather = 'all-gather(%q), channel_id=7, frontend_attributes={chain_id="0"}'
    state = f"({NEAR}, {NEAR}, {TOKEN})"
    fused = "".join(
        f"""%{name} (q: f32[1024,128]) -> f32[1024,128] {{
  %q = {NEAR} parameter(0)
  %g = {NEAR} {gather}
  ROOT %r = {kind} {root}
}}

"""
        for name, kind, root in (
            (
                "start",
                state,
                'custom-call(%g), custom_call_target="AsyncCollectiveStart"',
            ),
            ("between", NEAR, "negate(%g)"),
            ("end", NEAR, 'custom-call(%g), custom_call_target="AsyncCollectiveDone"'),
        )
    )
    cycles = 'backend_config={"estimated_cycles":"2500"}'  # 1, calibrated.
    lines = (
        f"%s = {state} fusion(%near), kind=kCustom, calls=%start, {cycles}",
        f"%b = {NEAR} fusion(%near), kind=kCustom, calls=%between, {cycles}",
        f"%e = {NEAR} fusion(%near), kind=kCustom, calls=%end, {cycles}",
        work("one", 3),
    )
    # It starts after the first; beside two fusions of 1 go 2 of its 4.
    assert taken(*lines, before=fused, **LINKS) == (1 + 2 + 2 + 3, 2)


def test_the_clock_by_itself():
    clock = Timeline()
    clock.wait("never started")
    clock.start("both", {MEMORY: 2.0, ("fsdp",): 5.0})
    clock.run(1.0, memory=3.0)  # Memory takes longer: it leaves nothing.
    assert clock.now == 3.0
    clock.wait("both")
    assert (clock.now, clock.waited) == (5.0, 2.0)
    clock.wait("both")
    assert clock.now == 5.0


# Compiled for a chip.


@pytest.mark.conformance
@pytest.mark.tpu_compile
def test_the_estimate_of_a_compiled_program():
    """Products near their peak; a kernel by its schedule though it moves nothing."""
    pytest.importorskip("libtpu")
    target = topology("v5e:2x2")
    place = SingleDeviceSharding(target.devices[0])
    turns, size = 6, 2048

    def step(x, kernel, flat):
        def layer(x, _):
            return jnp.tanh(x @ kernel), None

        x, _ = jax.lax.scan(layer, x, None, length=turns)
        parts = tuple(x[:512, :512] + i for i in range(4))
        mixed = stream_mix.stream_mix(parts, x[:512, :512] * 2, flat)
        return x, sum(mixed)

    text = compile_program(
        jax.jit(step).lower(
            jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=place),
            jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=place),
            jax.ShapeDtypeStruct((24,), jnp.float32, sharding=place),
        )
    ).text
    cost = estimate(text, target)
    assert cost.kernels.count == 1
    assert cost.unknown_kernels == cost.unknown_loops == 0
    least = turns * 2 * size**3 / 197e12
    # All that it is given, and all that it makes, lies in the chip.
    assert cost.kernels.bytes == 0
    without = program_cost(text, Machine(target.chip)).seconds
    assert least < without < 1.5 * least
    (cycles,) = kernels.kernel_cycles(text, "v5e").values()
    added = (cycles.always + cycles.guarded) / target.chip.clock
    # The least: five streams in, five out, a vector of 8 x 128 a cycle.
    assert added > 2 * 5 * 512 * 512 / (8 * 128) / target.chip.clock
    assert cost.seconds == pytest.approx(without + added, rel=0.02)
