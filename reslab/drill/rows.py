"""Faults, row by row; each yields None or a message for every fault."""

import concurrent.futures
import itertools
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reslab.core import config as configs
from reslab.drill.bad_inputs import bad_inputs
from reslab.drill.found import fingerprint, losses, newest_step
from reslab.drill.hostile import hostile as hostile_files
from reslab.drill.runs import HEARTBEAT, SAVED_EVERY, STEPS, Fault, Workshop, small

Found = Iterator[str | None]

# Faults of one run before it may come to its end.
CHAIN = 4
# Seconds beyond its limit within which a fault must be noticed.
SLACK = 10.0
TWO: dict[str, Any] = {"processes": 2, "devices": 2}
# Between steps, so that signals have time to arrive.
PACE = 0.05


def kill(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Killed at any moment, half of them in a save, a run ends bit for bit the same.

    Each is also begun again at most one interval before.
    """
    whole = fingerprint(workshop.clean("one"))
    while count > 0:
        run, found = workshop.new(), []
        for number in range(min(CHAIN, count)):
            start = newest_step(run)
            if number % 2:
                # Just after a save has begun; it continues behind the steps.
                step, delay = start + SAVED_EVERY, chance.uniform(0.0, PACE)
            else:
                step, delay = chance.randint(start + 1, start + SAVED_EVERY - 1), 0.0
            fault = Fault("kill", step, delay)
            ended = workshop.train(run, faults={0: fault}, pace=PACE)
            if ended.codes == (0,):
                break  # The save completed before the fault.
            lost = losses_step(run) - newest_step(run)
            problem = None
            if ended.codes != (-9,):
                problem = f"killed at step {step}: {ended}"
            elif lost > SAVED_EVERY + 1:
                problem = f"killed at step {step}: {lost} steps lost"
            found.append(problem)
        ended = workshop.train(run)
        if ended.codes != (0,) or fingerprint(run) != whole:
            found = [problem or f"another end: {ended}" for problem in found]
        count -= len(found)
        yield from found


def losses_step(run: pathlib.Path) -> int:
    """The last step that was written down."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def stop(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Asked to stop, all processes save one step, exit with 42, and resume exactly."""
    for number in range(count):
        options = TWO if number % 2 else {}
        whole = fingerprint(workshop.clean("two" if options else "one", **options))
        run, step = workshop.new(), chance.randint(2, STEPS // 2)
        rank = chance.randrange(options.get("processes", 1))
        ended = workshop.train(
            run, faults={rank: Fault("term", step)}, pace=PACE, **options
        )
        saved = newest_step(run)
        if {*ended.codes} != {42} or not step <= saved < STEPS:
            yield f"asked at step {step}, saved {saved}: {ended}"
            continue
        ended = workshop.train(run, **options)
        is_same = {*ended.codes} == {0} and fingerprint(run) == whole
        yield None if is_same else f"stopped at step {saved}, another end: {ended}"


def damage(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Damaged in any file, a checkpoint gives the right values or is set aside."""
    run = workshop.clean("one")
    yield from workshop.call(_damage, run, workshop.new(), count, chance.random())


def _damage(run: pathlib.Path, copy: pathlib.Path, count: int, seed: float) -> Found:
    from reslab.train import loop
    from reslab.train.checkpoint import Checkpoints, DamagedCheckpoint
    from reslab.train.digests import digests

    chance = random.Random(seed)
    config = configs.from_json((run / "config.json").read_text(), "config")
    target = loop.prepare(config).shapes
    right = {}
    for path in (run / "checkpoints").glob("*/integrity/metadata"):
        record = json.loads(path.read_text())["record"]
        right[record["step"]] = {k: v["digest"] for k, v in record["leaves"].items()}
    newest = run / "checkpoints" / str(max(right))
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    kinds = ("delete", "truncate", "zero", "flip")
    cases = list(itertools.product(files, kinds))
    chance.shuffle(cases)
    for file, kind in itertools.islice(itertools.cycle(cases), count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run / "checkpoints", copy)
        broken = copy / file.relative_to(run / "checkpoints")
        content = bytearray(broken.read_bytes())
        if kind == "delete":
            broken.unlink()
        elif kind == "truncate":
            broken.write_bytes(content[: len(content) // 2])
        elif kind == "zero":
            broken.write_bytes(bytes(len(content)))
        elif content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            broken.write_bytes(content)
        what = f"{kind} {file.relative_to(newest)}"
        try:
            with Checkpoints(copy) as checkpoints:
                restored = checkpoints.restore_newest(target)
                is_right = restored and digests(restored.state) == right[restored.step]
            yield None if is_right else f"{what}: wrong values"
        except DamagedCheckpoint as error:
            yield f"{what}: {error}"  # The steps before are intact.


def storage(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Without storage a run ends at once with an error, and its last step is intact.

    One whose checkpoints are deleted between two saves has lost nothing that it needs.
    """
    whole = fingerprint(workshop.clean("one"))
    for number in range(count):
        run, step = workshop.new(), chance.randint(SAVED_EVERY + 1, STEPS - 1)
        kind = ("full", "vanish", "unwritable")[number % 3]
        if kind == "unwritable":
            run.mkdir()
            (run / "checkpoints").write_text("no directory")
            ended = workshop.train(run)
            is_told = ended.codes == (2,) and "checkpoint" in ended.said[0]
            yield None if is_told else f"{kind}: {ended}"
            continue
        ended = workshop.train(run, faults={0: Fault(kind, step)}, pace=0.01)
        if kind == "vanish" and ended.codes == (0,):  # Between two saves.
            yield None if fingerprint(run) == whole else f"{kind} at {step}: {ended}"
            continue
        if ended.codes != (70,):
            yield f"{kind} at step {step}: {ended}"
            continue
        if kind == "vanish":  # After everything was saved: the user is asked.
            ended = workshop.train(run)
            yield None if ended.codes == (2,) else f"{kind}, again: {ended}"
            continue
        ended = workshop.train(run)
        is_same = ended.codes == (0,) and fingerprint(run) == whole
        yield None if is_same else f"{kind} at step {step}, another end: {ended}"


MESHES = (
    *((1, 1, 1), (1, 8, 1), (1, 2, 2), (2, 2, 2), (1, 4, 1), (8, 1, 1)),
    *((1, 1, 2), (4, 1, 2), (2, 1, 1)),
)


def reshard(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Saved on one mesh and restored on another, every bit is the same.

    The loss of the next step is, too, to a relative 1e-5.
    """
    pairs = list(itertools.permutations(MESHES, 2))
    chosen = [(MESHES[i], MESHES[(i + 1) % 3]) for i in range(3)]
    chosen += chance.sample(pairs, max(0, count - 3))
    yield from workshop.call(_reshard, workshop.new(), chosen[:count], devices=8)


def _reshard(
    directory: pathlib.Path, pairs: list[tuple[tuple[int, ...], ...]]
) -> Found:
    import jax

    from reslab.core.types import MESH_AXES
    from reslab.parallel.mesh import make_mesh, place_on, use_mesh
    from reslab.train.checkpoint import Checkpoints
    from reslab.train.digests import digests
    from reslab.train.state import make_setup
    from reslab.train.step import make_step

    config = configs.from_json(small(), "config")
    made: dict[tuple[int, ...], Any] = {}

    def on(shape: tuple[int, ...]) -> tuple[Any, Callable[[Any], Any]]:
        if shape not in made:
            sizes = dict(zip(MESH_AXES, shape, strict=True))
            mesh = make_mesh(sizes, jax.devices()[: int(np.prod(shape))])
            setup = make_setup(config, mesh)
            batch = place_on(mesh)(next(setup.task.train_batches()))
            compiled = jax.jit(make_step(setup))

            def step(state: Any) -> Any:
                with use_mesh(mesh):
                    return compiled(state, batch)

            made[shape] = setup, step
        return made[shape]

    for number, (before, after) in enumerate(pairs):
        (setup, step), (other, other_step) = on(before), on(after)
        state, _ = step(setup.init())
        with Checkpoints(directory / str(number), is_async=False) as checkpoints:
            checkpoints.save(1, state, data_index=8, force=True)
            restored = checkpoints.restore(other.shapes).state
        losses = [
            float(go(s)[1]["loss"]) for go, s in ((step, state), (other_step, restored))
        ]
        is_same = digests(state) == digests(restored)
        is_close = bool(np.isclose(*losses, rtol=1e-5, atol=0.0))
        yield None if is_same and is_close else f"{before} to {after}: {losses}"


def processes(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Whatever happens to one of two or four processes, all end soon after that."""
    kinds = ("kill", "raise", "stall", "pause", "exit")
    # Two processes, and every fourth time four.
    hosts = [4 if number % 4 == 3 else 2 for number in range(count)]
    cases = [
        (kind, several, chance.randrange(several), chance.randint(2, STEPS - 9))
        for kind, several in zip(itertools.cycle(kinds), hosts, strict=False)
    ]

    def one(case: tuple[str, int, int, int]) -> str | None:
        kind, several, rank, step = case
        limit = 4.0 if kind == "stall" else 0.0
        ended = workshop.train(
            workshop.new(),
            faults={rank: Fault(kind, step)},
            processes=several,
            devices=4 // several,
            watchdog=limit,
        )
        is_ended = None not in ended.codes and 0 not in ended.codes
        is_soon = ended.seconds <= limit + HEARTBEAT + SLACK
        if is_ended and is_soon:
            return None
        return f"{kind} of process {rank} of {several} at step {step}: {ended}"

    # Most of their time is waiting.
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield from pool.map(one, cases)


def repeat(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """On any number of hosts and workers, batches are the same, and losses to 1e-5."""
    found = losses(workshop.clean("two", **TWO))
    wanted = losses(workshop.clean("one"))
    is_close = len(found) == len(wanted) and np.allclose(found, wanted, rtol=1e-5)
    yield None if is_close else f"two processes: {found[-1]}, one: {wanted[-1]}"
    cases = [(0, 2), (0, 4), (1, 1), (0, 8)]
    cases += itertools.product((1, 2, 3), (1, 2, 4))
    yield from workshop.call(_batches, cases[: max(0, count - 1)])


def _batches(cases: list[tuple[int, int]]) -> Found:
    from reslab.data.batches import TrainBatches
    from reslab.data.corpus import load_corpus
    from reslab.data.windows import WindowSource

    corpus = load_corpus("synthetic(documents=60)", "bytes")
    windows = WindowSource(corpus.train, 16)

    def first(workers: int, shards: int) -> np.ndarray:
        rows = np.zeros((5, 8, 16), np.int32)
        for shard in range(shards):
            made = TrainBatches(windows, 8, 0, shard, shards, worker_count=workers)
            with made as batches:
                for index in range(5):
                    rows[index, shard::shards] = next(batches)["tokens"]
        return rows

    wanted = first(0, 1)
    for workers, shards in cases:
        is_same = np.array_equal(first(workers, shards), wanted)
        yield None if is_same else f"{workers} workers, {shards} hosts: other batches"


def bad_steps(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """A loss or gradient that is NaN, infinite or a spike halts, or is left out."""
    while count > 0:
        found = [*workshop.call(_bad_steps, workshop.new(), chance.random())][:count]
        count -= len(found)
        yield from found


def _bad_steps(directory: pathlib.Path, seed: float) -> Found:
    """Ten faults in three runs."""
    from reslab.data.batches import TrainBatches
    from reslab.train import loop

    chance = random.Random(seed)
    planted: dict[int, str] = {}
    plain = TrainBatches.__next__

    def poisoned(self: TrainBatches) -> dict[str, np.ndarray]:
        number = self.state // 8
        batch = plain(self)
        mask = batch["loss_mask"].astype(np.float32)
        kind = planted.get(number)
        if kind == "spike":  # Adds to earlier damage, and weighs little otherwise.
            mask[0, :8] = 1e5 * (-1.0) ** np.arange(8)
        elif kind:
            mask[:] = float(kind)
        return batch | {"loss_mask": mask}

    TrainBatches.__next__ = poisoned  # In a process of its own.
    names = itertools.count()

    def train(policy: str) -> dict[int, Any]:
        run = directory / str(next(names))
        text = small(train__on_bad_step=policy)
        loop.train(configs.from_json(text, "config"), run)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row for row in map(json.loads, lines)}

    kinds = ("nan", "inf", "spike")
    kind, at = chance.choice(kinds[:2]), chance.randrange(1, STEPS)
    planted[at] = kind
    try:
        train("halt")
        yield f"halt: {kind} in step {at + 1} does not end the run"
    except loop.Diverged as error:
        is_named = str(error).startswith(f"step {at + 1}: ")
        yield None if is_named else f"halt: step {at + 1}, told: {error}"
    # A spike is detected relative to earlier steps, so the first steps are clean.
    places = chance.sample(range(20, STEPS), 6)
    planted.clear()
    planted.update(zip(places, kinds + kinds, strict=True))
    rows = train("skip(window=16)")
    for at, kind in planted.items():
        skipped = sum(other <= at for other in planted)
        is_left_out = rows[at + 1]["skipped_steps"] == skipped
        yield None if is_left_out else f"skip: {kind} in step {at + 1}: {rows[at + 1]}"
    places = chance.sample(range(20, STEPS), 3)
    planted.clear()
    planted.update(zip(places, kinds, strict=True))
    problem = None
    try:
        # Gradients of a model this small may spike without a fault.
        rows = train("rollback(window=16, limit=6)")
        is_whole = sorted(rows) == [*range(1, STEPS + 1)]
        if not is_whole or any(row["skipped_steps"] for row in rows.values()):
            problem = f"rollback: {planted} in batches: {sorted(rows)}"
    except loop.Diverged as error:
        problem = f"rollback: {planted} in batches: {error}"
    yield from [problem] * len(planted)


def bad_input(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """A mistake is one line, exit code 2, and nothing is written."""
    yield from workshop.call(
        bad_inputs, workshop.new(), count, chance.random(), workshop.program
    )


def hostile(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """An untrusted directory runs no code and writes nothing outside its run."""
    yield from workshop.call(
        hostile_files, workshop.new(), count, chance.random(), workshop.program
    )
