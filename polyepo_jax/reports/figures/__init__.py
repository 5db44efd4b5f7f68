"""The figures of a report: what is drawn, in the order in which the page shows it."""

from polyepo_jax.reports.figures.canvas import Picture as Picture
from polyepo_jax.reports.figures.canvas import inline_svg as inline_svg
from polyepo_jax.reports.figures.canvas import png_bytes as png_bytes
from polyepo_jax.reports.figures.canvas import svg_bytes as svg_bytes
from polyepo_jax.reports.figures.costs import time_picture as time_picture
from polyepo_jax.reports.figures.evaluation import benchmark_pictures as benchmark_pictures
from polyepo_jax.reports.figures.evaluation import how_to_read as how_to_read
from polyepo_jax.reports.figures.overview import GRADING as GRADING
from polyepo_jax.reports.figures.overview import comparison_picture as comparison_picture
from polyepo_jax.reports.figures.overview import training_pictures as training_pictures
from polyepo_jax.reports.figures.palette import Style as Style
from polyepo_jax.reports.figures.palette import styles_of as styles_of
from polyepo_jax.reports.figures.palette import variable_of as variable_of
from polyepo_jax.reports.figures.palette import variables as variables
from polyepo_jax.reports.figures.training import how_to_read_steps as how_to_read_steps
