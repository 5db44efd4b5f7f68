"""Collectives of a compiled program: kinds, sizes of groups, bytes."""

import collections
import dataclasses
import math
import re

from polyepo_jax.planning.hlo.executions import Work, is_fused, total_work
from polyepo_jax.planning.hlo.text import KINDS, Computation, Instruction, Module, num_bytes, parse


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


def collectives(hlo_text: str, *unknown_trip_counts: int) -> tuple[Collective, ...]:
    """The collectives of one run of a program, most bytes first.

    Args:
      hlo_text: of the compiled program.
      unknown_trip_counts: as of `total_work`, at least one.

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
        operands = sum(map(num_bytes, computation.shapes_of_operands(instruction)))
        return {found: (1, _sent(kind, group_size, operands))} if group_size > 1 else {}

    work = total_work(module, unknown_trip_counts, own)
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
    return is_fused(module, computation) and any(
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
