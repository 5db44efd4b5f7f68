"""What a compiled program does, read from its text (`compiled.as_text()`): collectives, matrix products, buffers.

XLA's own analysis counts the body of a loop once (1,026 flops of five products that take 5,120), and the module's
objects in Python show neither shapes nor attributes: hence the text. XLA promises nothing about it: the tests compile
for CPU and TPU and compare. All figures are of one device.
"""

from polyepo_jax.planning.hlo.buffers import largest_buffers as largest_buffers
from polyepo_jax.planning.hlo.collectives import Collective as Collective
from polyepo_jax.planning.hlo.collectives import collectives as collectives
from polyepo_jax.planning.hlo.products import dot_flops as dot_flops
