"""What a checkpoint contains: params, the rest of the training state, and what the run says of itself.

Each is an item of its own, so that others can read the params alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from polyepo_jax.training.update import TrainState

IDENTITY = ("fingerprint", "config_hash")  # keys of the meta that the manifest repeats


def handler() -> ocp.CompositeCheckpointHandler:
    """Reads and writes the items."""
    return ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(), rest=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
    )


def rest_of(state: TrainState) -> dict[str, Any]:
    """The state without the params."""
    return {"step": state.step, "opt_state": state.opt_state, "nonfinite_in_a_row": state.nonfinite_in_a_row}


def to_save(state: TrainState, meta: Mapping[str, Any]) -> ocp.args.Composite:
    """All items. `meta` is what JSON can hold: fingerprint, config_hash, data order and metrics not yet written."""
    return ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(rest_of(state)),
        meta=ocp.args.JsonSave(dict(meta)),
    )


def to_restore(state: TrainState, shardings: Any) -> dict[str, Any]:
    """All items, with the state's shapes and dtypes, placed by `shardings`."""
    return {
        **params_to_restore(state.params, shardings.params),
        "rest": ocp.args.StandardRestore(_abstract(rest_of(state), rest_of(shardings))),
        "meta": ocp.args.JsonRestore(),
    }


def params_to_restore(params: Any, shardings: Any) -> dict[str, Any]:
    """The item `params` alone."""
    return {"params": ocp.args.StandardRestore(_abstract(params, shardings))}


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def restored_state(state: TrainState, items: Mapping[str, Any]) -> TrainState:
    """The state of a checkpoint, from the items that were read."""
    return dataclasses.replace(state, params=items["params"], **items["rest"])


def arrays_of(tree: Any) -> dict[str, str]:
    """What a manifest says of a tree: dtype and shape of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def described(state: TrainState, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a checkpoint, but for its files."""
    identity = {name: meta[name] for name in IDENTITY if name in meta}
    return {"params": arrays_of(state.params), "rest": arrays_of(rest_of(state)), **identity}
