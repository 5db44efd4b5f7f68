"""A decoder-only transformer as pure functions of a config and a params pytree."""

from polyepo_jax.model.cache import Cache as Cache
from polyepo_jax.model.cache import Layers as Layers
from polyepo_jax.model.cache import PromptCache as PromptCache
from polyepo_jax.model.cache import Ring as Ring
from polyepo_jax.model.cache import each_layer as each_layer
from polyepo_jax.model.cache import init_cache as init_cache
from polyepo_jax.model.cache import twice as twice
from polyepo_jax.model.config import LinearRopeScaling as LinearRopeScaling
from polyepo_jax.model.config import Llama3RopeScaling as Llama3RopeScaling
from polyepo_jax.model.config import ModelConfig as ModelConfig
from polyepo_jax.model.config import ModelNumerics as ModelNumerics
from polyepo_jax.model.config import YarnRopeScaling as YarnRopeScaling
from polyepo_jax.model.decoding import decode_step as decode_step
from polyepo_jax.model.decoding import prompt_cache as prompt_cache
from polyepo_jax.model.decoding import unstacked as unstacked
from polyepo_jax.model.hf import copy_companions as copy_companions
from polyepo_jax.model.hf import load_hf as load_hf
from polyepo_jax.model.hf import save_hf as save_hf
from polyepo_jax.model.logits import output_params as output_params
from polyepo_jax.model.logits import rounded_output as rounded_output
from polyepo_jax.model.logits import unembed as unembed
from polyepo_jax.model.transformer import forward as forward
from polyepo_jax.model.transformer import hidden_states as hidden_states
from polyepo_jax.model.transformer import init as init
from polyepo_jax.model.transformer import logical_axes as logical_axes
from polyepo_jax.model.transformer import prefill as prefill
