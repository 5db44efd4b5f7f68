"""Matrix products and convolutions of a compiled program."""

import math
import re

from polyepo_jax.planning.hlo.executions import Work, amount_of, total_work
from polyepo_jax.planning.hlo.text import Computation, Instruction, arrays, parse


def dot_flops(hlo_text: str, *unknown_trip_counts: int) -> float:
    """FLOPs of all matrix products of one run of a program on one device, two a multiplication and addition.

    Args:
      hlo_text: of the compiled program. What a custom kernel computes is not in it.
      unknown_trip_counts: as of `total_work`, at least one.

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

    return float(amount_of(total_work(parse(hlo_text), unknown_trip_counts, own)))


def _dimensions(shape: str) -> tuple[int, ...]:
    return next(dimensions for _, dimensions, _ in arrays(shape))


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
