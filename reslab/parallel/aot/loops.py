"""Trip counts of the loops of a compiled program."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from reslab.parallel.aot.hlo import Computation, Instruction, Module

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Term(NamedTuple):
    """An integer of a loop: a part of its state (None for none), and a constant."""

    index: int | None
    offset: int


def trips(module: Module, computation: Computation, one: Instruction) -> int | None:
    """Returns the trip count of a loop; None if it cannot be read.

    TPU programs carry no trip count. Their loops compare a counter of their
    state with a limit; the counter may grow by more than one, where XLA has
    unrolled the loop that overlaps a product with its collective.
    """
    (condition,), (body,) = one.called["condition"], one.called["body"]
    if known := _TRIPS.search(one.attributes):
        return int(known[1])
    test, step = (module.computations[name] for name in (condition, body))
    state = computation.instructions[one.operands[0]]
    update = step.instructions[step.root]
    if state.opcode != "tuple" or update.opcode != "tuple":
        return None

    def begins(term: Term) -> int | None:
        """The value of a term before the first pass."""
        if term.index is None:
            return term.offset
        first = computation.instructions[state.operands[term.index]]
        value = _term(module, computation, first)
        if value is None or value.index is not None:
            return None
        return value.offset + term.offset

    def grows(term: Term) -> int | None:
        """Returns the change of a term per pass, or None if unknown."""
        if term.index is None:
            return 0
        after = _term(module, step, step.instructions[update.operands[term.index]])
        if after is None or after.index != term.index:
            return None
        return after.offset

    sides = _compared(module, test, test.instructions[test.root], ())
    if sides is None:
        return None
    counter, limit = sides
    first, last, by = begins(counter), begins(limit), grows(counter)
    if first is None or last is None or not by or by < 0 or grows(limit) != 0:
        return None
    return max(0, math.ceil((last - first) / by))


def _compared(
    module: Module,
    computation: Computation,
    one: Instruction,
    given: Sequence[Term | None],
) -> tuple[Term, Term] | None:
    """The two sides of `counter < limit`."""
    operands = [computation.instructions[name] for name in one.operands]
    terms = [_term(module, computation, operand, given) for operand in operands]
    if one.opcode == "fusion":
        inner = module.fused(one)
        return _compared(module, inner, inner.instructions[inner.root], terms)
    if one.opcode != "compare" or "direction=LT" not in one.attributes:
        return None
    left, right = terms
    return (left, right) if left is not None and right is not None else None


def _term(
    module: Module,
    computation: Computation,
    one: Instruction,
    given: Sequence[Term | None] = (),
) -> Term | None:
    """An integer as a part of the loop's state and a constant beside it.

    Args:
      computation: Where it stands.
      one: What computes it.
      given: The parameters, inside a fusion.
    """
    operands = [computation.instructions[name] for name in one.operands]
    match one.opcode:
        case "constant":
            is_integer = re.fullmatch(r"-?\d+", one.inside)
            return Term(None, int(one.inside)) if is_integer else None
        case "parameter":
            at = int(one.inside)
            return given[at] if at < len(given) else None
        case "get-tuple-element":
            index = re.search(r"index=(\d+)", one.attributes)
            is_state = operands[0].opcode == "parameter"
            return Term(int(index[1]), 0) if is_state and index else None
        case "copy" | "bitcast":
            return _term(module, computation, operands[0], given)
        case "add":
            terms = [_term(module, computation, part, given) for part in operands]
            return _sum(*terms)
        case "fusion":
            terms = [_term(module, computation, part, given) for part in operands]
            inner = module.fused(one)
            return _term(module, inner, inner.instructions[inner.root], terms)
    return None


def _sum(one: Term | None, other: Term | None) -> Term | None:
    if one is None or other is None or None not in (one.index, other.index):
        return None
    index = other.index if one.index is None else one.index
    return Term(index, one.offset + other.offset)
