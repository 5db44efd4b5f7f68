"""Plots and tables of finished runs, from the files in their directories alone: no model and no JAX."""

from polyepo_jax.reports.html import report_html as report_html
from polyepo_jax.reports.plots import comparison_figure as comparison_figure
from polyepo_jax.reports.plots import pass_at_k_figure as pass_at_k_figure
from polyepo_jax.reports.plots import png_bytes as png_bytes
from polyepo_jax.reports.plots import report_title as report_title
from polyepo_jax.reports.plots import training_figure as training_figure
from polyepo_jax.reports.runs import Benchmark as Benchmark
from polyepo_jax.reports.runs import Run as Run
from polyepo_jax.reports.runs import load_runs as load_runs
from polyepo_jax.reports.tables import Table as Table
from polyepo_jax.reports.tables import comparison_tables as comparison_tables
