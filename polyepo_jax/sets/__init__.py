"""Set-RL mathematics on arrays: objectives of sets, and the advantages that follow from them."""

from polyepo_jax.sets.advantages import GRPO as GRPO
from polyepo_jax.sets.advantages import SIGNAL_THRESHOLD as SIGNAL_THRESHOLD
from polyepo_jax.sets.advantages import GRPODiv as GRPODiv
from polyepo_jax.sets.advantages import SetAdvantage as SetAdvantage
from polyepo_jax.sets.advantages import grpo_advantages as grpo_advantages
from polyepo_jax.sets.advantages import grpo_div_advantages as grpo_div_advantages
from polyepo_jax.sets.advantages import marginal_advantages as marginal_advantages
from polyepo_jax.sets.closed_form import pass_at_k as pass_at_k
from polyepo_jax.sets.construct import all_sets as all_sets
from polyepo_jax.sets.construct import sample_sets as sample_sets
from polyepo_jax.sets.objectives import MeanReward as MeanReward
from polyepo_jax.sets.objectives import Objective as Objective
from polyepo_jax.sets.objectives import PassAtN as PassAtN
from polyepo_jax.sets.objectives import Polychromic as Polychromic
from polyepo_jax.sets.objectives import num_distinct as num_distinct
from polyepo_jax.types import DEGENERATE as DEGENERATE
