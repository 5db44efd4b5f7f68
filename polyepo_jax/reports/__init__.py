"""Figures and tables of finished runs, from the files in their directories alone: no model and no JAX."""

from polyepo_jax.reports.differences import Method as Method
from polyepo_jax.reports.differences import methods_of as methods_of
from polyepo_jax.reports.figures import Picture as Picture
from polyepo_jax.reports.figures import png_bytes as png_bytes
from polyepo_jax.reports.figures import svg_bytes as svg_bytes
from polyepo_jax.reports.page import Report as Report
from polyepo_jax.reports.page import make_report as make_report
from polyepo_jax.reports.page import report_html as report_html
from polyepo_jax.reports.runs import Run as Run
from polyepo_jax.reports.runs import load_runs as load_runs
from polyepo_jax.reports.tables import Table as Table
from polyepo_jax.reports.tables import benchmark_names as benchmark_names
from polyepo_jax.reports.tables import summary_table as summary_table
