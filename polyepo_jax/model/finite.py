"""Whether parameters are numbers: a model that holds a NaN answers nothing, and trains to nothing without a word."""

from typing import Any

import jax
import jax.numpy as jnp


def check_finite(where: str, params: Any) -> None:
    """Raises ValueError, naming the arrays, where parameters hold NaN or an infinity.

    Args:
      where: what they are of, for the message.
      params: of a model, on any devices; all processes call this at the same point.
    """
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree))(params)
    bad = [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(finite) if not bool(ok)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{where}: expected finite weights, got NaN or infinity in {', '.join(bad[:3])}{more}: fetch or train the "
            "model anew"
        )
