"""Models in the format of Hugging Face: config.json and safetensors files, in and out."""

from polyepo_jax.model.hf.config import read_config as read_config
from polyepo_jax.model.hf.tensors import copy_companions as copy_companions
from polyepo_jax.model.hf.tensors import load_hf as load_hf
from polyepo_jax.model.hf.tensors import save_hf as save_hf
