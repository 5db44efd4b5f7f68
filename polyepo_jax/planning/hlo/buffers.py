"""The arrays that a compiled program holds in memory."""

import re

from polyepo_jax.planning.hlo.text import arrays, calls, parse


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
                pending += [name for names, _ in calls(instruction, trip_count=1) for name in names]
            named = re.search(r'op_name="([^"]*)"', instruction.attributes)
            for text, _, size in arrays(instruction.shape):
                # What JAX named says more than what the compiler called it.
                if text not in largest or (named and "/" in named[1] and "/" not in largest[text][1]):
                    largest[text] = size, named[1] if named else instruction.name
    found = sorted((-size, text, name) for text, (size, name) in largest.items())
    return [(-size, text, name) for size, text, name in found[:n]]
