"""What a policy can do, from many samples of each prompt: pass@k, majority@k, variety."""

from polyepo_jax.evaluation.agreement import adjusted_rand_index as adjusted_rand_index
from polyepo_jax.evaluation.problems import describe as describe
from polyepo_jax.evaluation.results import Results as Results
from polyepo_jax.evaluation.sampling import Outcome as Outcome
from polyepo_jax.evaluation.sampling import sample as sample
from polyepo_jax.evaluation.summaries import summarize as summarize
from polyepo_jax.evaluation.unfinished import Unfinished as Unfinished
from polyepo_jax.evaluation.unfinished import checksum as checksum
from polyepo_jax.evaluation.variety import branching as branching
from polyepo_jax.evaluation.votes import MAX_SAMPLES as MAX_SAMPLES
