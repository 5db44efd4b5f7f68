"""The text of a compiled program as computations of instructions."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line `name = shape opcode(arguments), attributes` of a computation."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return _NAME.findall(self.arguments)

    def called(self, *keys: str) -> list[str]:
        """Names of the computations in the attributes `keys`."""
        found = [match[2] for match in _CALLED.finditer(self.attributes) if match[1] in keys]
        return [name for names in found for name in _NAME.findall(names)]


@dataclasses.dataclass
class Computation:
    """A named list of instructions; `root` is the one whose result it returns."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def shapes_of_operands(self, instruction: Instruction) -> list[str]:
        return [self.instructions[name].shape for name in instruction.operands]


@dataclasses.dataclass
class Module:
    """A compiled program.

    callers: of each computation, the instruction that runs it and where that stands. The compiler gives every loop,
    branch and fusion computations of its own, so that there is one.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int
    callers: dict[str, tuple[Computation, Instruction]]


_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|called_computations)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)(?=, [a-z_\-]+=|$)")
_ARRAY = re.compile(r"\b([a-z]+(\d*)[a-z0-9]*)\[([\d,<=]*)\]")


def parse(hlo_text: str) -> Module:
    """Reads the text of a compiled program."""
    computations: dict[str, Computation] = {}
    current, entry = Computation(""), ""
    for line in hlo_text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        if match:
            is_root, name, shape, opcode, arguments = match.groups()
            current.instructions[name] = Instruction(name, shape, opcode, arguments, line[match.end() :])
            current.root = name if is_root else current.root
    if entry not in computations:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    callers = {
        called: (computation, instruction)
        for computation in computations.values()
        for instruction in computation.instructions.values()
        for group, _ in calls(instruction, trip_count=1)
        for called in group
    }
    return Module(computations, entry, _num_devices(hlo_text), callers)


def _num_devices(hlo_text: str) -> int:
    header = hlo_text[: hlo_text.find("\n")]
    numbers = [re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    return math.prod(int(number[1]) for number in numbers if number)


def arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Text, dimensions and bytes of the arrays of a shape, which may be a tuple. Padding to tiles is not counted."""
    for match in _ARRAY.finditer(shape):
        dimensions = tuple(int(size) for size in match[3].replace("<=", "").split(",") if size)
        bits = 8 if match[1] == "pred" else int(match[2] or 0)  # tokens have none
        yield match[0], dimensions, math.prod(dimensions) * bits // 8


def num_bytes(shape: str) -> int:
    return sum(size for _, _, size in arrays(shape))


def calls(instruction: Instruction, trip_count: int) -> list[tuple[list[str], int]]:
    """Computations that an instruction runs: alternatives, of which one runs, and how often."""
    match instruction.opcode:
        case "while":
            body, condition = instruction.called("body"), instruction.called("condition")
            return [(body, trip_count), (condition, trip_count + 1)]
        case "conditional":
            keys = "branch_computations", "true_computation", "false_computation"
            return [(instruction.called(*keys), 1)]
        case "call":
            return [(instruction.called("to_apply"), 1)]
        case "fusion":
            return [(instruction.called("calls"), 1)]
        case "custom-call":
            return [([name], 1) for name in instruction.called("called_computations")]
    started = instruction.opcode.removesuffix("-start")
    if started != instruction.opcode and started not in KINDS:  # async-start, call-start, fusion-start
        return [(instruction.called("calls", "to_apply"), 1)]
    return []  # reductions, sorts and the like run scalar computations
