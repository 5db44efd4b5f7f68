"""Which figures there are of training, and the two panels that say most, side by side in one file."""

import dataclasses
from collections.abc import Mapping, Sequence

from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.figures import canvas, metrics, palette, training
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.costs import time_picture
from polyepo_jax.reports.figures.evaluation import draw_frontier, draw_pass_at_k
from polyepo_jax.reports.figures.groups import group_pictures

Styles = Mapping[str, palette.Style]
GRADING = "Judge and verifier"
_DISTINCT = tuple(metric for metric in metrics.VARIETY if metric.name.endswith("distinct_correct"))


def training_pictures(methods: Sequence[Method], styles: Styles, suffix: str) -> dict[str, list[Picture]]:
    """Figures over the steps by heading; the headings that have any.

    Distinct correct answers are in distinct_correct.png: of validation problems, or else of training prompts.
    """
    variety = training.pictures_of(metrics.VARIETY, methods, styles, suffix)
    for i, picture in enumerate(variety):
        if picture.name.removesuffix(suffix) in {metric.name.replace("/", "_") for metric in _DISTINCT}:
            variety[i] = dataclasses.replace(picture, name=f"distinct_correct{suffix}")
            break
    times = time_picture(methods, suffix)
    reward, *others = metrics.LEARNING
    learning = [
        *training.pictures_of([reward], methods, styles, suffix),
        *group_pictures(methods, styles, suffix),
        *training.pictures_of(others, methods, styles, suffix),
    ]
    sections = {
        "Variety and coverage over training": variety,
        "Learning": learning,
        GRADING: training.pictures_of(metrics.GRADING, methods, styles, suffix),
        "Time": ([times] if times else []) + training.pictures_of(metrics.TIME, methods, styles, suffix),
    }
    return {heading: pictures for heading, pictures in sections.items() if pictures}


def comparison_picture(methods: Sequence[Method], name: str, styles: Styles) -> Picture | None:
    """pass@k beside distinct correct answers over training, or beside the frontier where no run was trained.

    None where one of the two cannot be drawn.
    """
    figure = canvas.new_figure(len(methods), 2 * canvas.WIDTH)
    if not draw_pass_at_k(figure, methods, name, styles):
        return None
    for metric in _DISTINCT:
        caption = training.draw_metric(figure, metric, methods, styles, column=1)
        if caption:
            return Picture("comparison", "pass@k and distinct correct answers", caption, figure)
    if draw_frontier(figure, methods, name, styles, column=1):
        return Picture("comparison", "pass@k and distinct correct answers", "", figure)
    return None
