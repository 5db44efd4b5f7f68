"""What a compiled program does, read from its text (`compiled.as_text()`): collectives, matrix products, buffers.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs. A program's text is the one
interface that says all of it, and XLA promises nothing about that text: the tests compile for CPU and TPU and compare.
All figures are of one device.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size.

    kind: one of `KINDS`. group_size: devices that exchange data with each other. count: executions a step.
    bytes: what one device sends a step in all of them, by ring algorithms. between_slices: over the data-center network
    that joins TPU slices; else over the links between chips.
    """

    kind: str
    group_size: int
    count: int
    bytes: int
    between_slices: bool = False


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
        for group, _ in _calls(instruction, trip_count=1)
        for called in group
    }
    return Module(computations, entry, _num_devices(hlo_text), callers)


def _num_devices(hlo_text: str) -> int:
    header = hlo_text[: hlo_text.find("\n")]
    numbers = [re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    return math.prod(int(number[1]) for number in numbers if number)


def _arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Text, dimensions and bytes of the arrays of a shape, which may be a tuple. Padding to tiles is not counted."""
    for match in _ARRAY.finditer(shape):
        dimensions = tuple(int(size) for size in match[3].replace("<=", "").split(",") if size)
        bits = 8 if match[1] == "pred" else int(match[2] or 0)  # tokens have none
        yield match[0], dimensions, math.prod(dimensions) * bits // 8


def _bytes(shape: str) -> int:
    return sum(size for _, _, size in _arrays(shape))


# Adding up over the call graph.

# key -> (executions, amount)
Work = dict[tuple, tuple[int, int]]


def _calls(instruction: Instruction, trip_count: int) -> list[tuple[list[str], int]]:
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


def _total(module: Module, unknown_trip_count: int, own: Callable[[Computation, Instruction], Work]) -> Work:
    """Adds up what `own` says of each instruction, times its executions in one run of the program."""
    totals: dict[str, Work] = {}

    def total(name: str) -> Work:
        if name not in totals:
            found: Work = {}
            for instruction in module.computations[name].instructions.values():
                _add(found, own(module.computations[name], instruction), 1)
                trips = 1
                if instruction.opcode == "while":
                    known = _trip_count(module, module.computations[name], instruction)
                    trips = unknown_trip_count if known is None else known
                for alternatives, times in _calls(instruction, trips):
                    if alternatives:
                        _add(found, max(map(total, alternatives), key=_amount), times)
            totals[name] = found
        return totals[name]

    return total(module.entry)


def _add(found: Work, work: Work, times: int) -> None:
    for key, (count, amount) in work.items():
        old_count, old_amount = found.get(key, (0, 0))
        found[key] = old_count + times * count, old_amount + times * amount


def _amount(work: Work) -> int:
    return sum(amount for _, amount in work.values())


# Trip counts.

_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_UNCHANGED = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "opt-barrier")
_SWAPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}


def _trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
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
        elif instruction.opcode == "parameter" and _is_fused(module, computation):
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


def _is_fused(module: Module, computation: Computation) -> bool:
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


# Collectives.


def collectives(hlo_text: str, unknown_trip_count: int) -> tuple[Collective, ...]:
    """The collectives of one run of a program, most bytes first.

    Args:
      hlo_text: of the compiled program.
      unknown_trip_count: how often a loop runs whose count the text does not say.

    Raises:
      ValueError: if the text is of no compiled program.
    """
    module = parse(hlo_text)
    repeated = _repeated_parts(module)

    def own(computation: Computation, instruction: Instruction) -> Work:
        found = _kind_and_group(module, computation, instruction)
        if not found or (computation.name, instruction.name) in repeated:
            return {}
        kind, group_size, _ = found
        operands = sum(map(_bytes, computation.shapes_of_operands(instruction)))
        return {found: (1, _sent(kind, group_size, operands))} if group_size > 1 else {}

    work = _total(module, unknown_trip_count, own)
    found = [Collective(kind, size, *work[kind, size, slices], slices) for kind, size, slices in work]
    return tuple(sorted(found, key=lambda each: (-each.bytes, each.kind, each.group_size, each.between_slices)))


def _kind_and_group(module: Module, computation: Computation, instruction: Instruction) -> tuple[str, int, bool] | None:
    """Kind, group size and whether it is between slices; None for what is no collective."""
    if instruction.opcode == "send":  # between slices a transfer by the hosts takes the place of the collective
        transfer = _TRANSFER.search(instruction.attributes)
        return (_TRANSFERS[transfer[2]], _transfer_group_size(transfer[1]), True) if transfer else None
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind == "all-reduce" and _is_scattered(module, computation, instruction):
        kind = "reduce-scatter"
    return kind, _group_size(instruction.attributes, module.num_devices), False


def _sent(kind: str, group_size: int, operand_bytes: int) -> int:
    """Bytes that each device of a ring sends; of an all-gather's operands the result is group_size times as large."""
    others = group_size - 1
    match kind:
        case "all-gather":
            return operand_bytes * others
        case "all-reduce":
            return 2 * operand_bytes * others // group_size
        case "collective-permute":
            return operand_bytes
    return operand_bytes * others // group_size


def _is_scattered(module: Module, computation: Computation, all_reduce: Instruction) -> bool:
    """Whether a fusion keeps only a device's part of the sum: the compiler for TPU writes a reduce-scatter so."""
    return _is_fused(module, computation) and any(
        other.opcode == "dynamic-slice" and other.operands[0] == all_reduce.name
        for other in computation.instructions.values()
    )


_CHAIN = re.compile(r'chain_id="(\d+)"')


def _repeated_parts(module: Module) -> set[tuple[str, str]]:
    """Mentions of a collective that another one counts.

    The compiler for TPU spreads a collective over the fusions that it overlaps with: each mentions it, with the same
    chain_id, the first beside a custom call AsyncCollectiveStart.
    """
    chains: dict[str, list[tuple[str, str, bool]]] = {}
    for computation in module.computations.values():
        collective = [i for i in computation.instructions.values() if i.opcode in KINDS]
        starts = any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions.values())
        for instruction in collective:
            chain = _CHAIN.search(instruction.attributes)
            if chain:
                chains.setdefault(chain[1], []).append((computation.name, instruction.name, starts))
    repeated = set()
    for mentions in chains.values():
        has_start = any(starts for *_, starts in mentions)
        for i, (computation_name, name, starts) in enumerate(mentions):
            if not starts if has_start else i > 0:
                repeated.add((computation_name, name))
    return repeated


_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_GROUP_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
# Axes of a mesh; `'a':(2)4` is a part, of size 4, of the axis a.
_GROUP_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\] *\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_TRANSFER = re.compile(r'_xla_megascale_target="?(.*?)"?,_xla_megascale_transfer_type="(\w+)"')
_TRANSFERS = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


def _group_size(attributes: str, num_devices: int) -> int:
    pairs = _PAIRS.search(attributes)
    if pairs:
        return _largest_ring(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    listed = _GROUP_LIST.search(attributes)
    if listed:
        return len(listed[1].split(","))
    iota = _GROUP_IOTA.search(attributes)
    if iota:
        return int(iota[2])
    mesh = _GROUP_MESH.search(attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return num_devices  # no groups: all devices form one


def _transfer_group_size(target: str) -> int:
    """Of `{1,2}x{0:3}`: slices, and the chips of each; of `{{100000,200000},...}`: groups; of `{{1->2},...}`: pairs."""
    if "->" in target:
        return _largest_ring(re.findall(r"(\d+)->(\d+)", target))
    group = re.search(r"\{([\d,:]+)\}", target)
    assert group, target
    ranges = [part.split(":") for part in group[1].split(",")]
    return sum(int(last) - int(first) + 1 for first, *_, last in ([*ends, ends[-1]] for ends in ranges))


def _largest_ring(pairs: list[tuple[str, str]]) -> int:
    """Devices in the longest chain of senders and receivers; 1 if all send to themselves."""
    root = {device: device for pair in pairs for device in pair}

    def find(device: str) -> str:
        while root[device] != device:
            root[device] = root[root[device]]
            device = root[device]
        return device

    for source, target in pairs:
        root[find(source)] = find(target)
    return max(collections.Counter(map(find, root)).values(), default=1)


# Matrix products.


def dot_flops(hlo_text: str, unknown_trip_count: int) -> float:
    """FLOPs of all matrix products of one run of a program on one device, two a multiplication and addition.

    Args:
      hlo_text: of the compiled program. What a custom kernel computes is not in it.
      unknown_trip_count: how often a loop runs whose count the text does not say.

    Raises:
      ValueError: if the text is of no compiled program.
    """

    def own(computation: Computation, instruction: Instruction) -> Work:
        match instruction.opcode:
            case "dot":
                products = _dot_products(computation, instruction)
            case "convolution":
                products = _convolution_products(computation, instruction)
            case _:
                return {}
        return {("dot",): (1, 2 * products)}

    return float(_amount(_total(parse(hlo_text), unknown_trip_count, own)))


def _dimensions(shape: str) -> tuple[int, ...]:
    return next(dimensions for _, dimensions, _ in _arrays(shape))


def _dot_products(computation: Computation, dot: Instruction) -> int:
    """Multiplications of a product of matrices, perhaps a batch of them."""
    left = _dimensions(computation.shapes_of_operands(dot)[0])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return math.prod(_dimensions(dot.shape)) * math.prod(left[axis] for axis in axes)


def _convolution_products(computation: Computation, convolution: Instruction) -> int:
    """Multiplications of a convolution: the compiler for TPU writes products of matrices so.

    Batch dimensions of a product become spatial ones, dilated such that each position of the window but one meets a
    hole; only positions that meet an element of the input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels, convolution
    shapes = [*map(_dimensions, computation.shapes_of_operands(convolution)), _dimensions(convolution.shape)]
    left, kernel, out = (
        dict(zip(label, shape, strict=True)) for label, shape in zip(labels.groups(), shapes, strict=True)
    )
    batch_groups = re.search(r"batch_group_count=(\d+)", convolution.attributes)
    products = left["b"] * kernel["i"] * kernel["o"] // (int(batch_groups[1]) if batch_groups else 1)
    for number in range(len(out) - 2):
        axis = str(number)
        window = _window(convolution.attributes, number)
        products *= _valid_positions(left[axis], kernel[axis], out[axis], *window)
    return products


def _window(attributes: str, axis: int) -> tuple[int, int, int, int]:
    """Stride, padding before, dilation of the input and of the kernel along a spatial axis."""
    window = re.search(r"window=\{([^}]*)\}", attributes)

    def value(key: str, default: str) -> str:
        found = re.search(rf"\b{key}=(\S+)", window[1]) if window else None
        return found[1].split("x")[axis] if found else default

    padding = int(value("pad", "0_0").split("_")[0])
    return int(value("stride", "1")), padding, int(value("lhs_dilate", "1")), int(value("rhs_dilate", "1"))


def _valid_positions(left: int, kernel: int, out: int, stride: int, padding: int, dilation: int, spread: int) -> int:
    """Pairs of a position in the kernel and one in the output that meet an element of the input, along one axis."""
    divisor = math.gcd(stride, dilation)
    period = dilation // divisor
    inverse = pow(stride // divisor, -1, period)
    count = 0
    for position in range(kernel):
        # The element met is (output * stride - offset) / dilation, where that is whole and one of the `left` there are.
        offset = padding - position * spread
        if offset % divisor:
            continue
        first = max(0, -(-offset // stride))
        last = min(out - 1, (dilation * (left - 1) + offset) // stride)
        first += (offset // divisor * inverse - first) % period
        count += max(0, (last - first) // period + 1)
    return count


# Buffers.


def largest_buffers(hlo_text: str, n: int) -> list[tuple[int, str, str]]:
    """The largest arrays that exist in memory while a program runs, each shape once.

    Results of the steps within a fusion are left out: they never exist as a whole.

    Returns:
      Up to `n` times bytes (without padding), shape as in `bf16[8,128]`, and the operation it comes from; largest
      first.

    Raises:
      ValueError: if the text is of no compiled program.
    """
    module = parse(hlo_text)
    largest: dict[str, tuple[int, str]] = {}
    pending = [module.entry]
    while pending:
        computation = module.computations[pending.pop()]
        for instruction in computation.instructions.values():
            if instruction.opcode != "fusion":
                pending += [name for names, _ in _calls(instruction, trip_count=1) for name in names]
            named = re.search(r'op_name="([^"]*)"', instruction.attributes)
            for text, _, size in _arrays(instruction.shape):
                # What JAX named says more than what the compiler called it.
                if text not in largest or (named and "/" in named[1] and "/" not in largest[text][1]):
                    largest[text] = size, named[1] if named else instruction.name
    found = sorted((-size, text, name) for text, (size, name) in largest.items())
    return [(-size, text, name) for size, text, name in found[:n]]
