"""Runs that differ in their seed alone, trained by one program."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.parallel.compiler import compiler_options
from reslab.parallel.mesh import batch_sharding, replicated
from reslab.train.evaluate import jit_sums, make_sums
from reslab.train.state import Setup
from reslab.train.step import jit_step, make_step

Together = Callable[..., Sequence[Any]]


class Programs:
    """The compiled programs of a run that trains alone.

    Attributes:
      seeds: Seeds of the runs that share them; none if nothing is shared.
    """

    seeds: tuple[int, ...] = ()

    def step(self, setup: Setup) -> Callable[..., Any]:
        """Returns the training step `(state, batch) -> (state, metrics)`."""
        return jit_step(setup)

    def sums(self, setup: Setup) -> Callable[..., Any]:
        """Returns the evaluation step `(variables, batch) -> sums`."""
        return jit_sums(setup)


ALONE = Programs()


class Pack:
    """Programs of several runs, called by each in a thread of its own.

    A call waits until every run has made one. Then those of the same program are
    computed at once: `jax.vmap` over states, batches and seeds. Where fewer runs than
    the pack has call a program, as after the end of one, copies of the last fill its
    place: a program is compiled once.

    Sums are rounded otherwise than in a run alone, so the runs agree with runs of
    their own to rounding at first (1e-5 after three steps in float32, but 3e-4 with
    SOAP, whose eigenvectors are sensitive), and drift apart as any two programs of one
    model do. A branch that is taken by the step, as an optimizer's work every few
    steps, is computed in every step: under `vmap`, a conditional is a selection.

    Args:
      seeds: The seed of each run.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = tuple(seeds)
        self._changed = threading.Condition()
        self._members = set(range(len(seeds)))
        self._calls: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self._answers: dict[int, Any] = {}
        self._programs: dict[str, Together] = {}

    def member(self, number: int) -> "Member":
        """Returns the programs of one of the runs."""
        return Member(self, number)

    def add(self, name: str, make: Callable[[Sequence[int]], Together]) -> None:
        """Adds a program unless it is known.

        Args:
          name: Its name.
          make: Maps the seeds to a function of a list for each argument, with an entry
            for each run, that returns a list of results.
        """
        with self._changed:
            if name not in self._programs:
                self._programs[name] = make(self.seeds)

    def call(self, number: int, name: str, *arguments: Any) -> Any:
        """Calls a program for one run, and waits for the others.

        Args:
          number: The run.
          name: The program.
          *arguments: The run's own arguments.

        Returns:
          The run's own result.
        """
        with self._changed:
            self._calls[number] = name, arguments
            self._compute_if_complete()
            self._changed.wait_for(lambda: number in self._answers)
            answer = self._answers.pop(number)
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def leave(self, number: int) -> None:
        """Takes a run out: nothing waits for it any more."""
        with self._changed:
            self._members.discard(number)
            self._compute_if_complete()

    def _compute_if_complete(self) -> None:
        if not self._members or self._calls.keys() != self._members:
            return
        calls, self._calls = self._calls, {}
        for name in {called for called, _ in calls.values()}:
            own = {n: given for n, (called, given) in calls.items() if called == name}
            try:
                self._answers |= self._compute(name, own)
            except Exception as error:  # Each run reports it.
                self._answers |= dict.fromkeys(own, _Failed(error))
        self._changed.notify_all()

    def _compute(self, name: str, own: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        last = next(reversed(own.values()))
        rows = [
            # A program consumes its arguments.
            own.get(number) or jax.tree.map(jnp.copy, last)
            for number in range(len(self.seeds))
        ]
        answers = self._programs[name](*map(list, zip(*rows, strict=True)))
        return {number: answers[number] for number in own}


class _Failed:
    def __init__(self, error: Exception):
        self.error = error


class Member(Programs):
    """The programs of one run of a pack."""

    def __init__(self, pack: Pack, number: int):
        self._pack = pack
        self._number = number
        self.seeds = pack.seeds

    def step(self, setup: Setup) -> Callable[..., Any]:
        """Returns the run's share of the step of all."""
        return self._share("step", lambda seeds: jit_steps(setup, seeds))

    def sums(self, setup: Setup) -> Callable[..., Any]:
        """Returns the run's share of the evaluation of all."""
        return self._share("sums", lambda seeds: _jit_all_sums(setup, len(seeds)))

    def _share(
        self, name: str, make: Callable[[Sequence[int]], Together]
    ) -> Callable[..., Any]:
        self._pack.add(name, make)
        return lambda *arguments: self._pack.call(self._number, name, *arguments)


def jit_steps(setup: Setup, seeds: Sequence[int]) -> Any:
    """The training step of several runs at once, in place.

    Args:
      setup: The setup of one of them.
      seeds: The seed of each.

    Returns:
      A jitted function of lists of states and batches, with an entry for each run,
      that returns a list of pairs of state and metrics.
    """
    step, count = make_step(setup), len(seeds)
    numbers = jnp.asarray(seeds, jnp.uint32)

    def steps(states: Sequence[Any], batches: Sequence[Any]) -> Sequence[Any]:
        found = jax.vmap(step)(_stacked(states), _stacked(batches), numbers)
        return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(count)]

    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, setup.shapes)
    return jax.jit(
        steps,
        in_shardings=(
            [state_sharding] * count,
            [batch_sharding(setup.mesh)] * count,
        ),
        out_shardings=[(state_sharding, replicated(setup.mesh))] * count,
        donate_argnums=0,
        compiler_options=compiler_options(setup.mesh.devices.flat[0].platform),
    )


def _jit_all_sums(setup: Setup, count: int) -> Any:
    sums = make_sums(setup)

    def all_sums(variables: Sequence[Any], batches: Sequence[Any]) -> Sequence[Any]:
        found = jax.vmap(sums)(_stacked(variables), _stacked(batches))
        return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(count)]

    options = compiler_options(setup.mesh.devices.flat[0].platform)
    return jax.jit(all_sums, compiler_options=options)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
