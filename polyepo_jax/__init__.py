"""Set reinforcement learning for language models that explore, on JAX."""

__version__ = "0.1.0"
