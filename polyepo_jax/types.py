"""The structs that flow from stage to stage, and the axis legend.

Prompts become rollouts, rollouts get grades, grades become advantages, advantages become an update. Each
stage takes a full struct and returns a new one; no field is ever missing or filled in later.

Axis letters, used as suffixes of array names everywhere::

    P prompts             B rows (P * N)        D model          F feed-forward
    N generations         T tokens              H query heads    V vocabulary
    S sets                C cache positions     K key/value heads
    M members of a set    L layers              A head dimension
"""

import dataclasses

import jax

Array = jax.Array

# Cluster id of generations in which no strategy is discernible: it never counts as a cluster.
DEGENERATE = -1


# Turns of a conversation, (role, text) each.
Turns = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One prompt with what is needed to grade responses to it; stays on the host.

    id: non-negative int32, unique in the task; the random numbers of its generations derive from it.
    prompt: the text the model continues, or answers as the user's turn.
    reference: what the verifier compares with, in the task's own form.
    turns: of a conversation what precedes the prompt, such as a system turn.
    """

    id: int
    prompt: str
    reference: str
    turns: Turns = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Distinct prompts of one step. Their texts and references stay on the host.

    tokens_PT: int32[P, T], left-padded.
    mask_PT: bool[P, T], True on real tokens.
    ids_P: int32[P], the prompt's identity in its task; random numbers of its generations derive from it.
    """

    tokens_PT: Array
    mask_PT: Array
    ids_P: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """N generations of each prompt.

    tokens_PNT: int32[P, N, T], right-padded after the end token.
    completion_mask_PNT: bool[P, N, T], True up to and including the end token.
    sampler_logprobs_PNT: float32[P, N, T], nats, of the distribution actually sampled; 0 on padding.
    truncated_PN: bool[P, N], True where the length limit came before an end token.
    """

    tokens_PNT: Array
    completion_mask_PNT: Array
    sampler_logprobs_PNT: Array
    truncated_PN: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grades:
    """What the verifier and the clusterer say of each generation.

    rewards_PN: float32[P, N].
    clusters_PN: int32[P, N], ids arbitrary within a prompt, DEGENERATE (-1) where no strategy is discernible.
    valid_PN: bool[P, N], False where *we* failed to grade (never where the generation is bad).
    """

    rewards_PN: Array
    clusters_PN: Array
    valid_PN: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows for an update: each a prompt followed by a completion.

    tokens_BT: int32[B, T].
    mask_BT: bool[B, T], True on real tokens (prompt and completion).
    loss_mask_BT: bool[B, T], True on the tokens that are trained.
    sampler_logprobs_BT: float32[B, T], nats, of token t given the tokens before it; 0 off the loss mask.
    proximal_logprobs_BT: the same of the policy that an update keeps near: before the step's first update. Only a loss
      with an importance cap reads it, and the update computes it itself.
    advantages_B: float32[B], given to every trained token of the row.
    """

    tokens_BT: Array
    mask_BT: Array
    loss_mask_BT: Array
    sampler_logprobs_BT: Array
    proximal_logprobs_BT: Array
    advantages_B: Array
