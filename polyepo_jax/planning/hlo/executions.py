"""How often the parts of a compiled program run: loops, and sums over the call graph."""

import re
from collections.abc import Callable, Iterator, Sequence

from polyepo_jax.planning.hlo.text import Computation, Instruction, Module, calls

# key -> (executions, amount)
Work = dict[tuple, tuple[int, int]]


def total_work(
    module: Module, unknown_trip_counts: Sequence[int], own: Callable[[Computation, Instruction], Work]
) -> Work:
    """Adds up what `own` says of each instruction, times its executions in one run of the program.

    Args:
      unknown_trip_counts: how often loops run whose count the text does not say: those within no other of these, those
        within one, and so on; the last is for all that lie deeper.
    """
    totals: dict[tuple[str, int], Work] = {}

    def total(name: str, depth: int = 0) -> Work:
        if (name, depth) not in totals:
            found: Work = {}
            for instruction in module.computations[name].instructions.values():
                _add(found, own(module.computations[name], instruction), 1)
                trips, within = 1, depth
                if instruction.opcode == "while":
                    known = trip_count(module, module.computations[name], instruction)
                    trips = unknown_trip_counts[min(depth, len(unknown_trip_counts) - 1)] if known is None else known
                    within += known is None
                for alternatives, times in calls(instruction, trips):
                    if alternatives:
                        works = [total(alternative, within) for alternative in alternatives]
                        _add(found, max(works, key=amount_of), times)
            totals[name, depth] = found
        return totals[name, depth]

    return total(module.entry)


def _add(found: Work, work: Work, times: int) -> None:
    for key, (count, amount) in work.items():
        old_count, old_amount = found.get(key, (0, 0))
        found[key] = old_count + times * count, old_amount + times * amount


def amount_of(work: Work) -> int:
    return sum(amount for _, amount in work.values())


_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_UNCHANGED = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "opt-barrier")
_SWAPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of `loop` runs at most; None where nothing says it.

    Compilers for CPU and GPU note it on the loop. That for TPU does not: there it follows from the condition, where a
    counter is compared with a constant, perhaps among other conditions that all must hold.
    """
    known = _KNOWN_TRIP_COUNT.search(loop.attributes)
    if known:
        return int(known[1])
    (condition,) = loop.called("condition")
    root = module.computations[condition]
    counts = [_trips_of_compare(module, computation, loop, *found) for found in _conjuncts(module, root, root.root)]
    return min((count for count in counts if count is not None), default=None)


def _conjuncts(module: Module, computation: Computation, name: str) -> Iterator[tuple[Computation, Instruction]]:
    """The conditions that must all hold for `name` to be true."""
    where, instruction = _resolve(module, computation, name)
    if instruction.opcode == "and":
        for operand in instruction.operands:
            yield from _conjuncts(module, where, operand)
    else:
        yield where, instruction


def _trips_of_compare(
    module: Module, computation: Computation, loop: Instruction, where: Computation, compare: Instruction
) -> int | None:
    """Trips after which `compare` no longer holds, if it is of a counter and a constant."""
    direction = re.search(r"direction=([A-Z]+)", compare.attributes)
    if compare.opcode != "compare" or not direction or direction[1] not in _SWAPPED:
        return None
    left, right = (_resolve(module, where, operand) for operand in compare.operands)
    relation = direction[1]
    if left[1].opcode == "constant":
        left, right, relation = right, left, _SWAPPED[relation]
    bound = _constant(right[1])
    if left[1].opcode != "get-tuple-element" or bound is None:
        return None
    (body,) = loop.called("body")
    index = _index(left[1])
    start = _constant(_resolve(module, computation, loop.operands[0], index)[1])
    step = _step(module, module.computations[body], index)
    rises = relation in ("LT", "LE")
    if start is None and rises:
        start = 0  # no constant, as in decoding from a prompt's end: the count becomes an upper bound
    if start is None or not step or (relation != "NE" and (step > 0) != rises):
        return None
    if relation in ("LE", "GE"):
        bound += 1 if relation == "LE" else -1
    distance = bound - start if step > 0 else start - bound
    return max(0, -(-distance // abs(step)))


def _step(module: Module, body: Computation, index: int) -> int | None:
    """The constant that the loop adds to element `index` of its state; None if it does something else."""
    where, update = _resolve(module, body, body.root, index)
    if update.opcode not in ("add", "subtract"):
        return None
    old, step = (_resolve(module, where, operand)[1] for operand in update.operands)
    if old.opcode == "constant" and update.opcode == "add":
        old, step = step, old
    value = _constant(step)
    if value is None or old.opcode != "get-tuple-element" or _index(old) != index:
        return None
    return value if update.opcode == "add" else -value


def _constant(instruction: Instruction) -> int | None:
    is_integer = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments)
    return int(instruction.arguments) if is_integer else None


def _index(element: Instruction) -> int:
    found = re.search(r"index=(\d+)", element.attributes)
    assert found, element
    return int(found[1])


def _resolve(
    module: Module, computation: Computation, name: str, index: int | None = None
) -> tuple[Computation, Instruction]:
    """The instruction that computes `name`, or element `index` of it, and where it stands.

    Looks through copies, tuples, into and out of fusions, and out of loops for what they leave as it is.
    """
    while True:
        instruction = computation.instructions[name]
        if index is not None:
            found = _resolve(module, computation, name)
            if found[1].opcode != "tuple":
                return found
            computation, name, index = found[0], found[1].operands[index], None
        elif instruction.opcode in _UNCHANGED:
            name = instruction.operands[0]
        elif instruction.opcode == "fusion":
            (called,) = instruction.called("calls")
            computation, name = module.computations[called], module.computations[called].root
        elif instruction.opcode == "parameter" and is_fused(module, computation):
            number = int(instruction.arguments)
            computation, caller = module.callers[computation.name]
            name = caller.operands[number]
        elif instruction.opcode == "get-tuple-element":
            where, source = _resolve(module, computation, instruction.operands[0])
            element = _index(instruction)
            if source.opcode == "tuple":
                computation, name = where, source.operands[element]
            elif source.opcode == "parameter" and _is_invariant(module, where, element):
                computation, loop = module.callers[where.name]
                name, index = loop.operands[0], element
            else:
                return computation, instruction
        else:
            return computation, instruction


def is_fused(module: Module, computation: Computation) -> bool:
    return computation.name in module.callers and module.callers[computation.name][1].opcode == "fusion"


def _is_invariant(module: Module, computation: Computation, index: int) -> bool:
    """Whether `computation` is a loop's, and the loop leaves element `index` of its state as it is."""
    _, loop = module.callers.get(computation.name, (None, None))
    if loop is None or loop.opcode != "while":
        return False
    (called,) = loop.called("body")
    body = module.computations[called].instructions
    result = body[module.computations[called].root]
    if result.opcode != "tuple":
        return False
    element = body[result.operands[index]]
    while element.opcode in _UNCHANGED:
        element = body[element.operands[0]]
    if element.opcode != "get-tuple-element" or _index(element) != index:
        return False
    return body[element.operands[0]].opcode == "parameter"
