"""What the figures draw, from numbers known in advance."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from polyepo_jax.reports import figures, load_runs, methods_of
from polyepo_jax.reports.comparisons import Estimate
from polyepo_jax.reports.figures import canvas, curves, evaluation, lines, metrics, overview, palette, training
from polyepo_jax.reports.figures.costs import step_times
from tests.reports.synthetic import demo, make_run, write_lines

NAME = "polynomial/held_out"
SMALL = {"num_problems": 4, "m": 8, "steps": 3}


def methods(*directories):
    return methods_of(load_runs(directories))


def words(picture):
    return [text.get_text() for ax in picture.figure.axes for text in ax.texts]


def draw(metric_name, found):
    (metric,) = (m for m in (*metrics.VARIETY, *metrics.LEARNING, *metrics.TIME) if m.name == metric_name)
    figure = canvas.new_figure(len(found))
    caption = training.draw_metric(figure, metric, found, palette.styles_of(found))
    return figure, caption


def test_labels_are_spread_and_stay_in_the_panel():
    np.testing.assert_allclose(lines.spread([50.0, 10.0, 11.0], 10, 100), [50, 5.5, 15.5])
    np.testing.assert_allclose(lines.spread([100.0, 99.0, 0.0], 10, 100), [100, 90, 0])
    heights = np.random.default_rng(0).uniform(0, 100, 8)
    placed = lines.spread(heights, 12, 100)
    assert placed.min() >= 0
    assert placed.max() <= 100
    assert np.diff(np.sort(placed)).min() > 12 - 1e-9
    np.testing.assert_array_equal(np.argsort(placed), np.argsort(heights))


def test_thinning_takes_means_and_keeps_gaps():
    steps, values = np.arange(1, 8), np.array([1, 3, np.nan, 5, np.nan, np.nan, 4.0])
    x, y, per_point = curves.thin(steps, values, 4)
    assert per_point == 2
    np.testing.assert_array_equal(x, [1.5, 3.5, 5.5, 7])
    np.testing.assert_array_equal(y, [2, 5, np.nan, 4])
    assert curves.thin(steps, values, 7)[2] == 1
    assert len(curves.thin(np.arange(10_001), np.zeros(10_001), 300)[0]) <= 300


def test_smoothing_leaves_constants_and_gaps_alone():
    values = np.array([2.0, 2.0, np.nan, 2.0, 2.0])
    np.testing.assert_array_equal(curves.smooth(values, 3), values)
    np.testing.assert_allclose(curves.smooth(np.array([0.0, 3.0, 0.0]), 3), [1.5, 1, 1.5])


def test_undefined_values_make_gaps_and_are_never_zero(tmp_path):
    directory = make_run(tmp_path / "grpo", **SMALL)
    write_lines(directory / "metrics.jsonl", [{"step": i, "rewards/mean": None if i == 2 else 0.5} for i in range(5)])
    figure, caption = draw("rewards/mean", methods(directory))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.5, 0.5, np.nan, 0.5, 0.5])
    assert caption == "The verifier's reward."
    assert draw("loss/clip_frac", methods(directory))[1] == ""


def test_seeds_are_a_mean_line_and_a_band_of_their_range(tmp_path):
    directories = [make_run(tmp_path / f"grpo_s{i}", seed=i, changes={"algorithm": "GRPO"}, **SMALL) for i in range(3)]
    for i, directory in enumerate(directories):
        # The last seed has logged fewer steps.
        write_lines(directory / "metrics.jsonl", [{"step": s, "rewards/mean": s + 3.0 * i} for s in range(5 - (i > 1))])
    (method,) = methods(*directories)
    line, averaging = curves.line_of(method, "rewards/mean", 100)
    np.testing.assert_array_equal(line.x, [0, 1, 2, 3])
    np.testing.assert_allclose(line.y, [3, 4, 5, 6])
    np.testing.assert_allclose(line.low, [0, 1, 2, 3])
    np.testing.assert_allclose(line.high, [6, 7, 8, 9])
    assert (averaging.per_point, averaging.window) == (1, 1)
    assert "GRPO n = 3" in training.how_to_read_steps([method])
    assert "range over seeds (GRPO n = 3)" in evaluation.how_to_read([method], NAME)


def seeds_at_other_steps(tmp_path, name):
    """Two seeds of GRPO that have a metric at every other step each."""
    directories = [make_run(tmp_path / f"grpo_s{i}", seed=i, changes={"algorithm": "GRPO"}, **SMALL) for i in range(2)]
    for i, directory in enumerate(directories):
        write_lines(directory / "metrics.jsonl", [{"step": s, name: None if s % 2 == i else 0.5} for s in range(90)])
    return directories


@pytest.mark.filterwarnings("error")
def test_seeds_with_no_step_in_common_are_said_not_to_be_shown(tmp_path):
    directories = seeds_at_other_steps(tmp_path, "rewards/mean")
    missing = "Not shown, for at no step all seeds have it: GRPO."
    (picture,) = learning(methods(*directories))
    assert picture.name == "rewards_mean"
    assert missing in picture.caption
    assert words(picture) == ["no step at which all seeds have it"]
    other = make_run(tmp_path / "poly_epo", **SMALL)
    picture = next(p for p in learning(methods(*directories, other)) if p.name == "rewards_mean")
    assert missing in picture.caption
    assert words(picture) == ["Poly-EPO"]
    found = methods(*seeds_at_other_steps(tmp_path / "distinct", "clusters/distinct_correct"))
    overview_picture = figures.comparison_picture(found, NAME, palette.styles_of(found))
    assert "Correctness against variety" in [text.get_text() for text in overview_picture.figure.texts]


def learning(found):
    return overview.training_pictures(found, palette.styles_of(found), "")["Learning"]


def test_numbers_of_training_have_figures_where_they_are_there(tmp_path):
    of_learning = ("kl/start", "loss/ratio_mean", "loss/ratio_max", "optimizer/learning_rate")
    of_time = ("throughput/rollout_tokens_per_s", "throughput/train_tokens_per_s")
    memory = {"memory/host_peak_bytes": 3 * 2**30, "memory/device_peak_bytes": 2**29}
    directory = make_run(tmp_path / "grpo", **SMALL)
    rows = [{"step": s} | dict.fromkeys((*of_learning, *of_time), 0.5 * s) | memory for s in (1, 2)]
    write_lines(directory / "metrics.jsonl", rows)
    found = methods(directory)
    pictures = overview.training_pictures(found, palette.styles_of(found), "_x")
    names = {heading: {picture.name for picture in of} for heading, of in pictures.items()}
    assert names == {
        "Learning": {f"{name.replace('/', '_')}_x" for name in of_learning},
        "Time": {f"{name.replace('/', '_')}_x" for name in (*of_time, *memory)},
    }
    for name, gib in zip(memory, (3.0, 0.5), strict=True):
        assert draw(name, found)[0].axes[0].lines[0].get_ydata().tolist() == [gib, gib]


def test_quantiles_of_groups_are_bands_of_one_figure_a_method(tmp_path):
    directories = [make_run(tmp_path / f"m{i}", **SMALL) for i in range(8)]
    quantiles = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 1.0, "max": 1.0}
    for directory in directories[1:]:
        row = {f"rewards/group_{name}": value for name, value in quantiles.items()}
        write_lines(directory / "metrics.jsonl", [{"step": s} | row for s in range(3)])
    pictures = [p for p in learning(methods(*directories)) if p.name.startswith("rewards_groups")]
    assert [picture.name for picture in pictures] == [f"rewards_groups_{i}" for i in range(1, 7)]
    assert [picture.caption.partition(":")[0] for picture in pictures] == [f"m{i}" for i in range(1, 7)]
    assert all("The first 6 methods have such a figure." in picture.caption for picture in pictures)
    (ax,) = pictures[0].figure.axes
    outer, inner = (band.get_paths()[0].get_extents() for band in ax.collections)
    assert (outer.y0, outer.y1, inner.y0, inner.y1) == (0.0, 1.0, 0.25, 1.0)
    heights = {text.get_text(): text.xyann[1] for text in ax.texts}
    assert sorted(heights, key=heights.get) == ["min", "25 %", "median", "75 %", "max"]
    (picture,) = (p for p in learning(methods(*directories[:2])) if p.name.startswith("rewards_groups"))
    assert "such a figure" not in picture.caption


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0"), (2.5e-5, "2.5e-5"), (1e-4, "1e-4"), (-4e-7, "-4e-7"), (0.25, "0.25"), (12_500, "12.5k"), (3e7, "3e7")],
)
def test_numbers_of_axes_are_written_as_they_are(value, written):
    assert lines.compact(value) == written


def test_long_series_are_thinned_and_say_so(tmp_path):
    directory = make_run(tmp_path / "grpo", **SMALL)
    write_lines(directory / "metrics.jsonl", [{"step": i, "rewards/mean": 0.5} for i in range(10_000)])
    figure, caption = draw("rewards/mean", methods(directory))
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) == 2_000
    assert "Each point is the mean of up to 5 steps" in caption
    assert "moving average over 101 points" in caption


def test_the_base_is_a_level_on_held_out_figures_of_equally_many_samples(tmp_path):
    found = methods(*demo(tmp_path, num_problems=4, m=8, steps=40))
    figure, caption = draw("eval/distinct_correct", found)
    assert {text.get_text() for text in figure.axes[0].texts} == {"base", "GRPO", "Poly-EPO"}
    assert "8 samples of each. Dashed level: on the test problems" in caption
    other = make_run(tmp_path / "other" / "warm_start", trained=False, num_problems=4, m=16, steps=3)
    figure, caption = draw("eval/distinct_correct", [*methods(other), *found[1:]])
    assert {text.get_text() for text in figure.axes[0].texts} == {"GRPO", "Poly-EPO"}
    assert "Dashed" not in caption


def test_counts_among_other_numbers_of_samples_are_left_out_and_named(tmp_path):
    few = make_run(tmp_path / "grpo", num_problems=4, m=8, steps=20)
    many = make_run(tmp_path / "poly_epo", num_problems=4, m=16, steps=20)
    figure, caption = draw("eval/distinct_correct", methods(few, many))
    assert [text.get_text() for text in figure.axes[0].texts] == ["GRPO"]
    assert "Not shown, for other numbers of samples do not compare: Poly-EPO (16)." in caption
    figure, _ = draw("eval/pass_at_1", methods(few, many))
    assert len(figure.axes[0].texts) == 2
    names = [picture.name for picture in figures.benchmark_pictures(*section(methods(few, many)))]
    assert "pass_at_k" in names
    assert not {"frontier", "branching"} & set(names)


def section(found):
    return found, [NAME], NAME, palette.styles_of(found)


def test_estimates_beyond_half_the_samples_are_hollow(tmp_path):
    found = methods(make_run(tmp_path / "grpo", **SMALL))
    (picture,) = (p for p in figures.benchmark_pictures(*section(found)) if p.name == "pass_at_k")
    hollow = [line for line in picture.figure.axes[0].lines if line.get_markerfacecolor() == palette.PAPER]
    assert [line.get_xdata().tolist() for line in hollow] == [[8.0]]
    assert "Hollow" in evaluation.how_to_read(found, NAME)


def test_the_difference_figure_draws_percentage_points_above_the_base(tmp_path):
    found = methods(*demo(tmp_path, **SMALL))
    (picture,) = (p for p in figures.benchmark_pictures(*section(found)) if p.name == "pass_at_k_difference")
    assert set(words(picture)) == {"base", "GRPO", "Poly-EPO"}
    paths = [method.runs[0].directory / "eval_problems.jsonl" for method in found[:2]]
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    by_hand = np.mean([b["pass_at_k"]["1"] - a["pass_at_k"]["1"] for a, b in zip(*rows, strict=True)])
    curve = picture.figure.axes[0].lines[1]
    assert curve.get_ydata()[0] == pytest.approx(by_hand)
    assert lines.points_of_percent(by_hand).lstrip("+\N{MINUS SIGN}") == f"{abs(100 * by_hand):.3g}"


@pytest.mark.parametrize("missing", ["metrics.jsonl", "eval_problems.jsonl"])
def test_figures_without_a_file_are_left_out(tmp_path, missing):
    directories = demo(tmp_path, **SMALL)
    for directory in directories:
        (directory / missing).unlink()
    found = methods(*directories)
    names = {picture.name for picture in figures.benchmark_pictures(*section(found))}
    assert ("pass_at_k_difference" in names) == (missing != "eval_problems.jsonl")
    assert bool(overview.training_pictures(found, palette.styles_of(found), "")) == (missing != "metrics.jsonl")
    # Without training the frontier stands in the overview.
    assert figures.comparison_picture(found, NAME, palette.styles_of(found)) is not None


def test_distinct_correct_falls_back_to_training_prompts(tmp_path):
    directory = make_run(tmp_path / "grpo", **SMALL)  # too short for an evaluation
    found = methods(directory)
    pictures = overview.training_pictures(found, palette.styles_of(found), "_x")["Variety and coverage over training"]
    assert [p.name for p in pictures][:2] == ["distinct_correct_x", "clusters_distinct_x"]


def test_step_time_leaves_out_the_step_that_compiles(tmp_path):
    directory = make_run(tmp_path / "grpo", **SMALL)
    rows = [{"step": i, "time/step_s": 100.0 if i == 1 else 4.0, "time/update_s": 1.0} for i in (1, 2, 3)]
    write_lines(directory / "metrics.jsonl", rows)
    (method,) = methods(directory)
    assert step_times(method) == {"update": 1.0, "other": 3.0}
    write_lines(directory / "metrics.jsonl", [{"step": 1, "time/update_s": 1.0}])
    (method,) = methods(directory)
    assert step_times(method) == {}


def test_file_names_of_benchmarks_differ():
    names = ["a", "aime 2025", "aime/2025", "<>", "hmmt"]
    suffixes = [evaluation.file_suffix(names, name) for name in names]
    assert suffixes == ["", "_benchmark2", "_benchmark3", "_benchmark4", "_hmmt"]


def test_each_method_has_its_own_color(tmp_path):
    found = methods(*(make_run(tmp_path / n, **SMALL) for n in ("warm_start", "grpo", "s/grpo", "mine", "yours")))
    styles = palette.styles_of(found)
    assert len({style.color for style in styles.values()}) == len({s.marker for s in styles.values()}) == 5


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    """WCAG 2.2, relative luminance."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("side", [0, 1])
def test_colors_stand_out_from_the_page_in_light_and_dark(side):
    colors = {name: pair[side] for name, pair in palette.variables().items()}
    paper = colors["paper"]
    assert contrast(colors["ink"], paper) > 12
    assert contrast(colors["muted"], paper) > 4.5
    assert min(contrast(color, paper) for name, color in colors.items() if name.startswith("series")) > 3


def test_inline_figures_have_ids_of_their_own_and_the_page_s_colors(tmp_path):
    found = methods(make_run(tmp_path / "grpo", **SMALL))
    pictures = figures.benchmark_pictures(*section(found))
    ids = []
    for picture in pictures:
        svg = figures.inline_svg(picture)
        root = ElementTree.fromstring(svg.replace("xlink:", "").replace("<svg ", "<svg xmlns='http://s' ", 1))
        own = [element.get("id") for element in root.iter() if element.get("id")]
        ids += own
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert set(used) <= set(own)
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert set(re.findall(r"var\(--([^)]+)\)", svg)) <= set(palette.variables())
        assert root.get("role") == "img"
        assert picture.caption in root.get("aria-label")
    assert len(ids) == len(set(ids))


def test_a_figure_has_room_for_the_names_of_all_lines(tmp_path):
    found = methods(*(make_run(tmp_path / f"m{i}", num_clusters=1 + i, **SMALL) for i in range(14)))
    for picture in figures.benchmark_pictures(*section(found)):
        (ax,) = picture.figure.axes
        heights = sorted(text.xyann[1] for text in ax.texts)
        assert len(heights) == 14
        assert np.diff(heights).min() >= canvas.LABEL_POINTS - 1e-6
        assert heights[-1] <= 72 * ax.get_window_extent().height / picture.figure.dpi + 1e-6


def test_points_too_close_to_name_beside_are_named_at_the_side():
    def points(*places):
        return [tuple(Estimate(value, np.nan, np.nan) for value in place) for place in places]

    assert not evaluation._crowded(points((0.4, 15), (0.99, 1.2), (0.83, 16)))
    assert evaluation._crowded(points((0.80, 15), (0.99, 1.2), (0.83, 15.5), (0.2, 3)))
    assert not evaluation._crowded(points((0.5, 0.0)))


def test_rarefied_counts_of_few_problems_are_hollow(tmp_path):
    directory = make_run(tmp_path / "grpo", p_correct=0.9, **SMALL)
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    content["benchmarks"][NAME] |= {
        "rarefied_correct": {"1": 1.0, "2": 1.5, "4": 2.0, "8": 3.0},
        "rarefied_problems": {"1": 4, "2": 4, "4": 2, "8": 1},
    }
    path.write_text(json.dumps(content))
    (picture,) = (p for p in figures.benchmark_pictures(*section(methods(directory))) if p.name == "rarefied_correct")
    hollow = [line for line in picture.figure.axes[0].lines if line.get_markerfacecolor() == palette.PAPER]
    assert [line.get_xdata().tolist() for line in hollow] == [[8.0]]


def test_axes_follow_small_numbers_and_survive_constant_ones(tmp_path):
    directory = make_run(tmp_path / "grpo", **SMALL)
    write_lines(
        directory / "metrics.jsonl", [{"step": i, "logprobs/sampler_gap": 4e-7 * i, "rewards/mean": 0} for i in (1, 2)]
    )
    (gap,) = draw("logprobs/sampler_gap", methods(directory))[0].axes
    assert gap.get_ylim()[0] == 0
    assert 8e-7 < gap.get_ylim()[1] < 1e-6
    (rewards,) = draw("rewards/mean", methods(directory))[0].axes
    assert rewards.get_ylim()[0] < rewards.get_ylim()[1]
