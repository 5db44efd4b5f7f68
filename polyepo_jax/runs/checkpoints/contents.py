"""What a checkpoint contains: params, the rest of the training state, rollouts that were sampled ahead if there are
any, and what the run says of itself.

Each is an item of its own, so that others can read the params alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from polyepo_jax.training.update import TrainState
from polyepo_jax.types import Rollouts

IN_FLIGHT = "in_flight"  # the item of rollouts, and the key of the meta with an entry for each of them
IDENTITY = ("fingerprint", "config_hash")  # keys of the meta that the manifest repeats


def handler() -> ocp.CompositeCheckpointHandler:
    """Reads and writes the items."""
    return ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(),
        rest=ocp.StandardCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
        **{IN_FLIGHT: ocp.StandardCheckpointHandler()},
    )


def rest_of(state: TrainState) -> dict[str, Any]:
    """The state without the params."""
    return {"step": state.step, "opt_state": state.opt_state, "nonfinite_in_a_row": state.nonfinite_in_a_row}


def arrays_in_flight(in_flight: Sequence[Rollouts]) -> dict[str, dict[str, Any]]:
    """The arrays of rollouts, in the order of their steps."""
    fields = [field.name for field in dataclasses.fields(Rollouts)]
    return {str(i): {name: getattr(rollouts, name) for name in fields} for i, rollouts in enumerate(in_flight)}


def to_save(state: TrainState, meta: Mapping[str, Any], in_flight: Sequence[Rollouts]) -> ocp.args.Composite:
    """All items. `meta` is what JSON can hold: fingerprint, config_hash, data order and metrics not yet written."""
    rollouts = {IN_FLIGHT: ocp.args.StandardSave(arrays_in_flight(in_flight))} if in_flight else {}
    return ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(rest_of(state)),
        meta=ocp.args.JsonSave(dict(meta)),
        **rollouts,
    )


def to_restore(state: TrainState, shardings: Any, in_flight: Sequence[Rollouts]) -> dict[str, Any]:
    """All items but the meta, with the state's shapes and dtypes, placed by `shardings`; rollouts as they say."""
    rollouts = {IN_FLIGHT: ocp.args.StandardRestore(arrays_in_flight(in_flight))} if in_flight else {}
    return {
        **params_to_restore(state.params, shardings.params),
        "rest": ocp.args.StandardRestore(_abstract(rest_of(state), rest_of(shardings))),
        **rollouts,
    }


def meta_to_restore() -> dict[str, Any]:
    """The item `meta` alone."""
    return {"meta": ocp.args.JsonRestore()}


def params_to_restore(params: Any, shardings: Any) -> dict[str, Any]:
    """The item `params` alone."""
    return {"params": ocp.args.StandardRestore(_abstract(params, shardings))}


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def restored_state(state: TrainState, items: Mapping[str, Any]) -> TrainState:
    """The state of a checkpoint, from the items that were read."""
    return dataclasses.replace(state, params=items["params"], **items["rest"])


def restored_in_flight(items: Mapping[str, Any], count: int) -> list[Rollouts]:
    """The rollouts of a checkpoint, which holds those of so many steps, from the items that were read."""
    return [Rollouts(**items[IN_FLIGHT][str(i)]) for i in range(count)]


def arrays_of(tree: Any) -> dict[str, str]:
    """What a manifest says of a tree: dtype and shape of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def described(state: TrainState, meta: Mapping[str, Any], in_flight: Sequence[Rollouts]) -> dict[str, Any]:
    """What a manifest says of a checkpoint, but for its files."""
    identity = {name: meta[name] for name in IDENTITY if name in meta}
    rollouts = {IN_FLIGHT: arrays_of(arrays_in_flight(in_flight))} if in_flight else {}
    return {"params": arrays_of(state.params), "rest": arrays_of(rest_of(state)), **rollouts, **identity}
