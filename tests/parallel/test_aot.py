"""Programs for an absent TPU: slices, the compiler's figures, the program's text."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from reslab.core.errors import ReslabError
from reslab.parallel.aot import topology as slices
from reslab.parallel.aot.cost import Cost, Machine, program_cost
from reslab.parallel.aot.hlo import Shape
from reslab.parallel.aot.program import OutOfMemory, compile_program
from reslab.parallel.aot.topology import CHIPS, topology
from reslab.parallel.aot.wires import Traffic, Wire

CHIP = dataclasses.replace(CHIPS["v5e"], clock=1e9, hbm_bandwidth=1e12)


def cost(text):
    return program_cost(text, Machine(CHIP))


def entry(*lines):
    body = "\n".join(f"  {line}" for line in lines)
    return f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


ARRAY = "f32[1024,128]{1,0:T(8,128)}"  # 512 KiB
SIZE = 4 * 1024 * 128
ADD = f"""%add_both (a: f32[1024,128]) -> f32[1024,128] {{
  %a = {ARRAY} parameter(0)
  ROOT %sum = {ARRAY} add(%a, %a)
}}
"""


# What one instruction moves.


@pytest.mark.parametrize(
    "text, expected",
    [
        ("f32[1024,128]{1,0:T(8,128)}", 4 * 1024 * 128),
        ("bf16[3,64]{1,0:T(8,128)(2,1)}", 2 * 8 * 128),
        ("bf16[3,64]{0,1:T(8,128)(2,1)}", 2 * 64 * 128),  # 3 is the minor axis.
        ("f32[2,5,128]{2,1,0:T(2,128)}", 4 * 2 * 6 * 128),
        ("s32[7]{0:T(256)}", 4 * 256),
        ("pred[]", 1),
        ("s4[16]{0}", 8),
        ("f8e4m3fn[16]{0}", 16),
    ],
)
def test_arrays_lie_in_padded_tiles(text, expected):
    assert [shape.laid_out for shape in Shape.all(text)] == [expected]


def test_the_chips_own_memory_is_free():
    outside, inside = f"{ARRAY}", "f32[1024,128]{1,0:T(8,128)S(1)}"
    lines = [f"%p = {outside} parameter(0)"]
    both = entry(*lines, f"ROOT %n = {outside} negate(%p)")
    one = entry(*lines, f"ROOT %n = {inside} negate(%p)")
    assert cost(both).hbm_bytes == 2 * SIZE
    assert cost(one).hbm_bytes == SIZE


def test_an_operand_that_is_named_twice_is_read_once():
    text = entry(f"%p = {ARRAY} parameter(0)", f"ROOT %n = {ARRAY} add(%p, %p)")
    assert cost(text).hbm_bytes == 2 * SIZE
    views = [f"%{name} = {ARRAY} bitcast(%p)" for name in "ab"]
    text = entry(f"%p = {ARRAY} parameter(0)", *views, f"ROOT %n = {ARRAY} add(%a, %b)")
    assert cost(text).hbm_bytes == 2 * SIZE


def test_a_slice_reads_and_an_update_writes_its_part():
    stack = "f32[6,1024,128]{2,1,0:T(8,128)}"
    part = "f32[1,1024,128]{2,1,0:T(8,128)}"
    fused = f"""%read (s: f32[6,1024,128], i: s32[]) -> f32[1,1024,128] {{
  %s = {stack} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %d = {part} dynamic-slice(%s, %i, %z, %z), dynamic_slice_sizes={{1,1024,128}}
}}

%write (s.1: f32[6,1024,128], u: f32[1,1024,128]) -> f32[6,1024,128] {{
  %s.1 = {stack} parameter(0)
  %u = {part} parameter(1)
  %z.1 = s32[] constant(0)
  %b = {stack} bitcast(%s.1)
  ROOT %w = {stack} dynamic-update-slice(%b, %u, %z.1, %z.1, %z.1)
}}

"""
    text = fused + entry(
        f"%p = {stack} parameter(0)",
        "%i.1 = s32[]{:S(6)} parameter(1)",
        f"%r = {part} fusion(%p, %i.1), kind=kLoop, calls=%read",
        f"ROOT %w.1 = {stack} fusion(%p, %r), kind=kLoop, calls=%write",
    )
    assert cost(text).hbm_bytes == 4 * SIZE


def test_copies_in_memory_are_told_from_prefetches():
    fast = "f32[1024,128]{1,0:T(8,128)S(1)}"
    other = "f32[1024,128]{0,1:T(8,128)}"
    text = entry(
        f"%p = {ARRAY} parameter(0)",
        f"%c = {other} copy(%p)",
        f"%s = ({fast}, {ARRAY}, u32[]{{:S(2)}}) copy-start(%p)",
        f"%d = {fast} copy-done(%s)",
        f"ROOT %n = {fast} negate(%d)",
    )
    assert cost(text).copies == Traffic(1, 2 * SIZE)
    assert cost(text).hbm_bytes == 3 * SIZE


def test_kernels_are_counted_apart():
    text = entry(
        f"%p = {ARRAY} parameter(0)",
        f'%b = {ARRAY} custom-call(), custom_call_target="AllocateBuffer"',
        f"ROOT %add_rms.7 = {ARRAY} custom-call(%p, %b), "
        "frontend_attributes={metadata={",
        '"a":"b = c(d"',
        '}}, custom_call_target="tpu_custom_call"',
    )
    traffic = Traffic(1, 3 * SIZE)
    expected = Cost(
        3 * SIZE,
        kernels=traffic,
        by_kernel={"add_rms": traffic},
        seconds=3 * SIZE / 1e12,
        memory=3 * SIZE / 1e12,
        unknown_kernels=1,
    )
    assert cost(text) == expected


def test_seconds_are_cycles_and_those_of_loops_are_calibrated():
    cycles = 'backend_config={"estimated_cycles":"5000"}'
    dot = ADD.replace("add_both", "product").replace("add(", "dot(")
    line = f"ROOT %f = {ARRAY} fusion(%p), kind=kLoop, calls="
    head = f"%p = {ARRAY} parameter(0)"
    loop = ADD + entry(head, f"{line}%add_both, {cycles}")
    product = dot + entry(head, f"{line}%product, {cycles}")
    silent = ADD + entry(head, f"{line}%add_both")
    assert cost(product).seconds == pytest.approx(5e-6)
    assert cost(loop).seconds == pytest.approx(2e-6)
    assert cost(silent).seconds == pytest.approx(2 * SIZE / 1e12)
    unknown = cycles.replace("5000", str(2**63 - 1))
    unknowing = ADD + entry(head, f"{line}%add_both, {unknown}")
    assert cost(unknowing).seconds == pytest.approx(2 * SIZE / 1e12)


# Loops.


def loop(begin="0", step="1", limit="5", compare="LT", attributes=""):
    state = f"(s32[]{{:S(6)}}, {ARRAY})"
    return f"""{ADD}
%body (b: (s32[], f32[1024,128])) -> (s32[], f32[1024,128]) {{
  %b = {state} parameter(0)
  %i = s32[]{{:S(6)}} get-tuple-element(%b), index=0
  %x = {ARRAY} get-tuple-element(%b), index=1
  %by = s32[]{{:S(6)}} constant({step})
  %next = s32[]{{:S(6)}} add(%i, %by)
  %y = {ARRAY} fusion(%x), kind=kLoop, calls=%add_both
  ROOT %t = {state} tuple(%next, %y)
}}

%condition (c: (s32[], f32[1024,128])) -> pred[] {{
  %c = {state} parameter(0)
  %j = s32[]{{:S(6)}} get-tuple-element(%c), index=0
  %limit = s32[]{{:S(6)}} constant({limit})
  ROOT %less = pred[]{{:S(6)}} compare(%j, %limit), direction={compare}
}}

""" + entry(
        f"%p = {ARRAY} parameter(0)",
        f"%start = s32[]{{:S(6)}} constant({begin})",
        f"%s = {state} tuple(%start, %p)",
        f"%w = {state} while(%s), condition=%condition, body=%body{attributes}",
        f"ROOT %r = {ARRAY} get-tuple-element(%w), index=1",
    )


@pytest.mark.parametrize(
    "changes, trips",
    [
        ({}, 5),
        ({"begin": "2"}, 3),
        # XLA unrolls the loops that overlap a product with its collective.
        ({"step": "2"}, 3),
        ({"begin": "5"}, 0),
        ({"attributes": ', backend_config={"known_trip_count":{"n":"9"}}'}, 9),
    ],
)
def test_loops_count_as_often_as_they_run(changes, trips):
    found = cost(loop(**changes))
    # The comparison reads and writes nothing in memory.
    assert found.hbm_bytes == trips * 2 * SIZE
    assert found.unknown_loops == 0


def test_a_loop_that_cannot_be_read_is_told():
    found = cost(loop(compare="NE"))
    assert (found.hbm_bytes, found.unknown_loops) == (2 * SIZE, 1)


def test_the_costliest_branch_counts():
    text = (
        ADD
        + ADD.replace("%add_both", "%nothing")
        .replace("%sum", "%none")
        .replace("add(%a, %a)", "bitcast(%a)")
        + entry(
            f"%p = {ARRAY} parameter(0)",
            "%i = s32[] parameter(1)",
            f"ROOT %c = {ARRAY} conditional(%i, %p, %p), "
            "branch_computations={%nothing, %add_both}",
        )
    )
    assert cost(text).hbm_bytes == 2 * SIZE


def test_other_text_is_refused():
    with pytest.raises(ReslabError, match="HLO"):
        cost("HloModule nothing")


# Collectives.


def test_collectives_count_the_whole_array():
    quarter = "f32[256,128]{1,0:T(8,128)}"
    text = entry(
        f"%p = {quarter} parameter(0)",
        f"%g = {ARRAY} all-gather(%p), channel_id=1, dimensions={{0}}",
        f"%s = ({ARRAY}, {quarter}) all-reduce-start(%g, %p), channel_id=2",
        f"%d = ({ARRAY}, {quarter}) all-reduce-done(%s)",
        f"%x = {ARRAY} get-tuple-element(%d), index=0",
        f"%m = ({ARRAY}, {ARRAY}, u32[]{{:S(2)}}) collective-permute-start(%x)",
        f"%n = {ARRAY} collective-permute-done(%m)",
        f"ROOT %r = {quarter} reduce-scatter(%n), channel_id=3, dimensions={{0}}",
    )
    assert cost(text).collectives == {
        "all-gather": Traffic(1, SIZE),
        "all-reduce": Traffic(1, SIZE + SIZE // 4),
        "reduce-scatter": Traffic(1, SIZE),
        "collective-permute": Traffic(1, SIZE),
    }


@pytest.mark.parametrize(
    "groups, axes, size",
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 2),
        ("replica_groups=[4,2]<=[8]", ("tensor",), 2),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",), 2),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",), 2),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "tensor"), 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("replica_groups={}", ("data", "fsdp", "tensor"), 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", ("tensor",), 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", ("data", "fsdp"), 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'b','a'}", ("data", "fsdp", "tensor"), 8),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", (), 0),  # A part of an axis.
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1}}", ("data",), 2),
        ("replica_groups={{0,1},{2}}", (), 0),
        ("use_global_device_ids=true", (), 0),
    ],
)
def test_collectives_run_over_axes_of_the_mesh(groups, axes, size):
    text = entry(
        f"%p = {ARRAY} parameter(0)",
        f"ROOT %r = {ARRAY} all-reduce(%p), channel_id=1, {groups}, to_apply=%plus",
    )
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found = program_cost(text, Machine(CHIP, mesh=mesh))
    assert found.wires == {Wire("all-reduce", axes, size): Traffic(1, SIZE)}
    assert (found + found).wires == (found * 2).wires
    assert found.collectives == {"all-reduce": Traffic(1, SIZE)}


@pytest.mark.parametrize(
    "transfer, target, wire",
    [
        ("ALL_REDUCE", "{1,2}x{0:3}", Wire("all-reduce", ("data",), 2)),
        ("ONE_TO_ONE", "{0:3,8}", Wire("collective-permute", ("data",), 5)),
    ],
)
def test_slices_send_each_other_what_they_have(transfer, target, wire):
    host = (
        "is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="
        f'"xla_megascale_runtime",_xla_megascale_target="{target}",'
        f'_xla_megascale_transfer_type="{transfer}"}}'
    )
    text = entry(
        f"%p = {ARRAY} parameter(0)",
        "%t = token[] after-all()",
        f"%s = ({ARRAY}, u32[], token[]) send(%p, %t), channel_id=3, {host}",
        f"%r = ({ARRAY}, u32[], token[]) recv(%t), channel_id=2, {host}",
        f"%e = token[] send-done(%s), channel_id=3, {host}",
        f"%d = ({ARRAY}, token[]) recv-done(%r), channel_id=2, {host}",
        f"ROOT %x = {ARRAY} get-tuple-element(%d), index=0",
    )
    found = program_cost(text, Machine(CHIP, mesh={"data": 8, "fsdp": 2}))
    assert found.wires == {wire: Traffic(1, SIZE)}
    assert found.hbm_bytes == 2 * SIZE


def test_an_all_reduce_that_is_sliced_is_a_reduce_scatter():
    quarter = "f32[256,128]{1,0:T(8,128)}"
    fused = f"""%scatter (a: f32[1024,128]) -> f32[256,128] {{
  %a = {ARRAY} parameter(0)
  %all = {ARRAY} all-reduce(%a), channel_id=4, to_apply=%plus
  %me = u32[] partition-id()
  %z = u32[] constant(0)
  ROOT %d = {quarter} dynamic-slice(%all, %me, %z), dynamic_slice_sizes={{256,128}}
}}

"""
    text = fused + entry(
        f"%p = {ARRAY} parameter(0)",
        f"ROOT %f = {quarter} fusion(%p), kind=kCustom, calls=%scatter",
    )
    assert cost(text).collectives == {"reduce-scatter": Traffic(1, SIZE)}


def test_a_chain_of_fusions_is_one_collective():
    quarter = "f32[256,128]{1,0:T(8,128)}"
    gather = 'all-gather(%q), channel_id=7, frontend_attributes={chain_id="0"}'
    state = f"({quarter}, {ARRAY}, u32[]{{:S(2)}})"
    fused = f"""%start (q: f32[256,128]) -> (f32[256,128], f32[1024,128], u32[]) {{
  %q = {quarter} parameter(0)
  %g = {ARRAY} {gather}
  ROOT %s = {state} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%between (q: f32[256,128], w: f32[1024,128]) -> (f32[1024,128], f32[1024,128]) {{
  %q = {quarter} parameter(0)
  %w = {ARRAY} parameter(1)
  %g = {ARRAY} {gather}
  ROOT %t = ({ARRAY}, {ARRAY}) tuple(%w, %g)
}}

%done (q: f32[256,128], w: f32[1024,128]) -> f32[1024,128] {{
  %q = {quarter} parameter(0)
  %w = {ARRAY} parameter(1)
  %g = {ARRAY} {gather}
  ROOT %d = {ARRAY} custom-call(%q, %w, %g), custom_call_target="AsyncCollectiveDone"
}}

"""
    text = fused + entry(
        f"%p = {quarter} parameter(0)",
        f"%s.1 = {state} fusion(%p), kind=kCustom, calls=%start",
        f"%o = {ARRAY} get-tuple-element(%s.1), index=1",
        f"%b = ({ARRAY}, {ARRAY}) fusion(%p, %o), kind=kCustom, calls=%between",
        f"%v = {ARRAY} get-tuple-element(%b), index=0",
        f"ROOT %e = {ARRAY} fusion(%p, %v), kind=kCustom, calls=%done",
    )
    assert cost(text).collectives == {"all-gather": Traffic(1, SIZE)}
    assert cost(text).hbm_bytes == SIZE + SIZE // 4


# Slices.


@pytest.fixture
def has_libtpu():
    pytest.importorskip("libtpu")


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "name, kind, count",
    [
        ("v4:2x2x1", "TPU v4", 4),  # One device a chip, not one a core.
        ("v4:2x2x4", "TPU v4", 16),
        ("v5e:1x1", "TPU v5 lite", 1),
        ("v5e:2x4", "TPU v5 lite", 8),
        ("v5p:2x2x1", "TPU v5", 4),
        ("v6e:2x2", "TPU v6 lite", 4),
        ("2xv5e:2x2", "TPU v5 lite", 8),  # Two slices.
        ("v5litepod-4", "TPU v5 lite", 4),
        ("tpu7x:2x2x1", "TPU7x", 8),  # Two devices a chip.
    ],
)
def test_slices(has_libtpu, name, kind, count):
    found = topology(name)
    assert [d.device_kind for d in found.devices] == [kind] * count
    assert found.devices[0].platform == "tpu"


@pytest.mark.parametrize(
    "name, words",
    [
        ("v9:2x2", "one of tpu7x, v4, v5e, v5p, v6e"),
        ("v5:2x2", "try: 'v5"),
        ("v5e", "v5e:2x2"),
        ("v5e:2x2x1", "v5e:2x2"),
        ("v5p:2x2", "v5p:2x2x2"),
        ("v5e:0x2", "v5e:2x2"),  # libtpu divides by it and dies.
        ("v5e:2xtwo", "v5e:2x2"),
        ("0xv5e:2x2", "known: tpu7x, v4"),
        ("v5p-9", "a power of two, of two cores a chip"),
        ("v5e-12", "v5e:2x2"),
        ("v5e-", "v5litepod-8"),
        ("tpu7x-8", "v5litepod-8"),
        ("2xv5e:2", "v5e:2x2"),
    ],
)
def test_no_such_slice(name, words):
    with pytest.raises(ReslabError, match=words) as caught:
        topology(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.tpu_compile
def test_a_slice_that_libtpu_refuses(has_libtpu):
    with pytest.raises(ReslabError, match=r"v5e:3x5.*even sizes") as caught:
        topology("v5e:3x5")
    assert "\n" not in str(caught.value)


def test_libtpu_is_an_extra(monkeypatch):
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ReslabError, match=r"'libtpu' is not.*reslab\[tpu\]"):
        topology("v5e:2x2")


def test_what_is_set_stays(monkeypatch, has_libtpu):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v4-8")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    slices.prepare()
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v4-8"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"


# The compiler.


def lower(function, *sizes, name="v5e:1x1", **options):
    place = SingleDeviceSharding(topology(name).devices[0])
    arguments = [
        jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=place) for size in sizes
    ]
    return jax.jit(function, **options).lower(*arguments)


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "name", ["v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "tpu7x:1x1x1"]
)
def test_memory_is_what_the_compiler_has(has_libtpu, name):
    """Half a TiB does not fit, and the compiler says how much would."""
    lowered = lower(lambda x: x[:8] + x[8:16], (2**38,), name=name)
    with pytest.raises(OutOfMemory) as caught:
        compile_program(lowered)
    assert caught.value.needed >= 2**39
    assert caught.value.available == CHIPS[name.partition(":")[0]].hbm_bytes


@pytest.fixture
def cache(tmp_path):
    """A folder for compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_was_compiled_is_not_compiled_again(has_libtpu, cache):
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
    first = compile_program(lowered, "here")
    assert not first.is_cached
    again = compile_program(lowered, "here")
    assert again == dataclasses.replace(first, is_cached=True)
    assert not compile_program(lowered, "elsewhere").is_cached
    # A file that is no program is compiled, and replaced.
    for path in cache.glob("reslab-*"):
        path.write_bytes(b"half")
    assert not compile_program(lowered, "here").is_cached
    assert compile_program(lowered, "here").is_cached
    assert not compile_program(lowered).is_cached


@pytest.mark.tpu_compile
def test_memory_is_xlas_own(has_libtpu):
    def step(x, w):
        return jnp.tanh(x @ w), (x @ w.T).sum()

    lowered = lower(step, (512, 1024), (1024, 1024), donate_argnums=0)
    stats = lowered.compile().memory_analysis()
    memory = compile_program(lowered).memory
    assert memory.arguments == 2 * (512 * 1024 + 1024 * 1024)
    assert memory.aliased == 2 * 512 * 1024  # The donated one.
    assert (memory.arguments, memory.outputs, memory.aliased) == (
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
    )
    assert memory.temporaries == stats.temp_size_in_bytes
    assert memory.code == stats.generated_code_size_in_bytes
    assert memory.peak == (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


@pytest.mark.conformance
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "name", ["v5e:1x1", pytest.param("v6e:1x1", marks=pytest.mark.conformance)]
)
def test_memory_traffic_of_a_stack_is_that_of_its_kernels(has_libtpu, name):
    """Read once each, scanned or not; XLA's own analysis counts one layer."""
    depth, width, rows = 4, 4096, 128

    def stack(x, kernels, unroll):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, kernels, unroll=unroll)[0]

    found = []
    for unroll in (1, depth):
        lowered = lower(
            lambda x, k, unroll=unroll: stack(x, k, unroll),
            (rows, width),
            (depth, width, width),
            name=name,
        )
        text = compile_program(lowered).text
        chip = CHIPS[name.partition(":")[0]]
        found.append(program_cost(text, Machine(chip)))
    ideal = 2 * (depth * width * width + 2 * rows * width)
    for one in found:
        assert ideal <= one.hbm_bytes <= 1.1 * ideal
        assert one.unknown_loops == 0 and not one.collectives
        # Few rows: the kernels come in no faster than the memory gives them.
        assert one.seconds >= 0.5 * ideal / chip.hbm_bandwidth


PROGRAM = """
import jax
from jax.sharding import SingleDeviceSharding
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology

place = SingleDeviceSharding(topology("v5e:2x2").devices[0])
x = jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=place)
print(compile_program(jax.jit(lambda x: x @ x).lower(x)).memory.arguments)
"""


@pytest.mark.conformance
@pytest.mark.tpu_compile
def test_several_processes_compile_at_once(has_libtpu):
    ours = dict(os.environ)
    ours.pop("ALLOW_MULTIPLE_LIBTPU_LOAD")  # It is set where it is needed.
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=ours, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [one.communicate(timeout=120)[0].strip() for one in running] == [
        str(4 * 1024 * 1024)
    ] * 2


@pytest.mark.parametrize("is_written", [True, False])
def test_a_program_whose_text_jaxlib_cannot_read(is_written):
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("async-update should have 1 operands")

        class memory_analysis:
            argument_size_in_bytes = output_size_in_bytes = 8
            alias_size_in_bytes = temp_size_in_bytes = 2
            generated_code_size_in_bytes = 1

    class Lowered:
        def compile(self, compiler_options):
            if is_written:
                folder = pathlib.Path(compiler_options["xla_dump_to"])
                (folder / "module_0.jit_step.after_codegen.txt").write_text("text")
            return Compiled()

    program = compile_program(Lowered())
    assert program.text == ("text" if is_written else None)
    assert program.memory.peak == 16


@pytest.mark.parametrize(
    "message, needed, available",
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (170.50G) exceeds "
            "available HBM (15.75G). HLO module: jit_step.",
            170.5 * 2**30,
            15.75 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.25G "
            "of 15.75G hbm. Exceeded hbm capacity by 1.50G.",
            17.25 * 2**30,
            15.75 * 2**30,
        ),
    ],
)
def test_what_is_missing_is_read(message, needed, available):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(OutOfMemory) as caught:
        compile_program(Lowered())
    assert (caught.value.needed, caught.value.available) == (needed, available)


def test_other_refusals_are_told():
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. "
                "25.34M of 16.00M\nmore"
            )

    with pytest.raises(ReslabError, match=r"refuses it.*vmem") as caught:
        compile_program(Lowered())
    assert "\n" not in str(caught.value)
