"""Checkpoints of the train state and of the data's position, by orbax.

All processes of a run call every method at the same point. Each writes and checks its share of the files; process 0
moves and deletes.
"""

from polyepo_jax.runs.checkpoints.contents import IN_FLIGHT as IN_FLIGHT
from polyepo_jax.runs.checkpoints.errors import CheckpointError as CheckpointError
from polyepo_jax.runs.checkpoints.errors import RestoreError as RestoreError
from polyepo_jax.runs.checkpoints.errors import SaveError as SaveError
from polyepo_jax.runs.checkpoints.store import Checkpoints as Checkpoints
from polyepo_jax.runs.checkpoints.store import any_checkpoint as any_checkpoint
