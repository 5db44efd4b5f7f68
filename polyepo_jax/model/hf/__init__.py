"""Models in the format of Hugging Face: config.json and safetensors files, and adapters in that of PEFT, in and out."""

from polyepo_jax.model.hf.adapters import load_adapters as load_adapters
from polyepo_jax.model.hf.adapters import read_lora as read_lora
from polyepo_jax.model.hf.adapters import save_adapters as save_adapters
from polyepo_jax.model.hf.config import read_config as read_config
from polyepo_jax.model.hf.tensors import copy_companions as copy_companions
from polyepo_jax.model.hf.tensors import load_hf as load_hf
from polyepo_jax.model.hf.tensors import save_hf as save_hf
