"""The page: whole, self-contained, escaped, and open about what it lacks."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from polyepo_jax.reports import Method, load_runs, make_report, methods_of, report_html
from tests.reports.synthetic import demo, make_run, write_lines

VOID = {"meta", "br", "line", "path", "use", "rect"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects ids, links and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)
            assert not name.startswith("on"), f"{name} on {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def page_of(*directories):
    runs = load_runs(directories)
    return report_html(make_report(runs, methods_of(runs)))


def words(reader):
    return " ".join(" ".join(reader.text).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return page_of(*demo(root, num_problems=6, m=16, steps=45, hidden=True, judge=True))


def test_the_page_needs_nothing_from_elsewhere(page):
    reader = read(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & reader.tags
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert len(reader.ids) == len(set(reader.ids))
    assert not re.search(r"@import|url\((?!#)|https?://", page)
    assert len(page) < 1_000_000


def test_the_page_is_made_for_phones_for_the_dark_and_for_paper(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media screen and (prefers-color-scheme: dark)" in page
    assert "@media print" in page
    defined = set(re.findall(r"--([\w-]+):", page))
    assert set(re.findall(r"var\(--([\w-]+)", page)) <= defined


def test_the_page_says_what_it_shows(page):
    text = words(read(page))
    for part in (
        "Polynomial, held out",
        "6 problems, 16 samples of each",
        "Differences to base (warm start)",
        "Calls and failures by kind",
        "Where a step's time goes",
        "Generations side by side",
        "What differs between the configurations",
        "Hidden requirement at k",
        "algorithm.advantage.class",
    ):
        assert part in text
    assert 'class="notes"' not in page  # nothing is missing
    assert page.count("<figure>") >= 20


def test_missing_files_are_said_and_never_shown_as_zero(tmp_path):
    directories = demo(tmp_path, num_problems=3, m=4, steps=3)
    for directory in directories:
        (directory / "eval_problems.jsonl").unlink()
    (directories[2] / "eval.json").unlink()
    page = page_of(*directories)
    text = words(read(page))
    assert "no eval_problems.jsonl: no paired differences" in text
    assert "Poly-EPO : no eval.json" in text
    assert "Not evaluated on it: Poly-EPO." in text
    assert "No paired differences: no eval_problems.jsonl with the same problems." in text
    assert "Differences to" not in text


def test_a_run_in_progress_is_a_page_of_curves(tmp_path):
    directory = make_run(tmp_path / "grpo", num_problems=3, m=4, steps=3)
    for name in ("eval.json", "eval_problems.jsonl", "eval_samples.jsonl"):
        (directory / name).unlink()
    page = page_of(directory)
    for part in ("Polynomial", "Reward", "no eval.json"):
        assert part in page
    assert "benchmark-1" not in page


def test_runs_of_different_tasks_have_sections_of_their_own(tmp_path):
    first = make_run(tmp_path / "grpo", num_problems=3, m=4, steps=3)
    changes = {"task": {"class": "polyepo_jax.tasks.math:Math"}}
    second = make_run(tmp_path / "math", names=("aime_2025",), num_problems=3, m=4, steps=3, changes=changes)
    runs = load_runs([first, second])
    report = make_report(runs, methods_of(runs))
    titles = [section.title for section in report.sections]
    assert titles[:2] == ["Polynomial, held out", "Aime 2025"]
    assert {"Learning: Polynomial", "Learning: Math"} <= set(titles)
    names = [picture.name for picture in report.pictures]
    assert len(names) == len(set(names))
    assert {"rewards_mean", "rewards_mean_math_2", "pass_at_k_aime_2025"} <= set(names)
    text = words(read(report_html(report)))
    assert "Not evaluated on it: math." in text
    assert "their curves do not compare" in text


def test_evaluations_of_other_numbers_of_samples_are_said(tmp_path):
    few = make_run(tmp_path / "grpo", num_problems=3, m=4, steps=3)
    many = make_run(tmp_path / "poly_epo", num_problems=3, m=8, steps=3)
    path = many / "eval.json"
    content = json.loads(path.read_text())
    content["sampling"]["temperature"] = 0.6
    path.write_text(json.dumps(content))
    text = words(read(page_of(few, many)))
    assert "different numbers of samples (GRPO 4, Poly-EPO 8)" in text
    assert "temperature 0.6" in text


def test_one_method_among_several_that_sampled_differently_is_said_whichever_of_its_runs(tmp_path):
    run_dirs = [make_run(tmp_path / f"grpo_s{i}", seed=i, num_problems=3, m=4, steps=3) for i in range(2)]
    runs = load_runs(run_dirs)
    runs[1] = dataclasses.replace(runs[1], sampling=runs[1].sampling | {"temperature": 0.25})
    both = Method("GRPO", "grpo", tuple(runs))
    assert "Sampled differently (temperature 0.25, top_k 0" in report_html(make_report(runs, [both]))


def test_a_benchmark_that_could_not_be_graded_is_said_and_not_drawn(tmp_path):
    graded = make_run(tmp_path / "grpo", num_problems=3, m=4, steps=3, names=("a", "b"))
    other = make_run(tmp_path / "poly_epo", num_problems=3, m=4, steps=3, names=("a", "b"))
    content = json.loads((other / "eval.json").read_text())
    content["benchmarks"] |= {"b": {"num_prompts": 0, "num_failed": 3}, "c": {"num_prompts": 0, "num_failed": 3}}
    (other / "eval.json").write_text(json.dumps(content))
    runs = load_runs([graded, other])
    report = make_report(runs, methods_of(runs))
    assert ["Evaluated on it, but none of the problems could be graded: Poly-EPO."] in [
        [remark for remark in section.remarks if "graded" in remark] for section in report.sections
    ]
    assert [section.title for section in report.sections][:3] == ["A", "B", "Variety and coverage over training"]
    text = words(read(report_html(report)))
    assert "Poly-EPO : b: none of its 3 problems could be graded" in text
    assert "Poly-EPO : c: none of its 3 problems could be graded" in text
    assert "Not evaluated on it" not in text


def test_one_sample_of_each_problem_is_said_to_give_no_curves_over_k(tmp_path):
    one = make_run(tmp_path / "grpo", num_problems=3, m=1, steps=3)
    sentence = "No curves over k: one sample of each problem gives pass@1 alone."
    assert sentence in words(read(page_of(one)))
    two = make_run(tmp_path / "poly_epo", num_problems=3, m=2, steps=3)
    assert sentence not in words(read(page_of(one, two)))


def test_ten_thousand_steps_of_several_seeds_stay_small(tmp_path):
    directories = [
        make_run(tmp_path / f"{kind}_s{seed}", seed=seed, num_problems=2, m=2, steps=1, changes={"algorithm": kind})
        for kind in ("grpo", "poly_epo", "other")
        for seed in range(2)
    ]
    names = ("rewards/mean", "coverage", "completions/entropy", "loss/grad_norm", "clusters/distinct")
    for i, directory in enumerate(directories):
        rows = ({"step": s} | dict.fromkeys(names, (s * 7919 + i * 31) % 1000 / 1000) for s in range(10_000))
        write_lines(directory / "metrics.jsonl", rows)
    page = page_of(*directories)
    assert "Each point is the mean of up to 16 steps" in page
    assert len(page) < 700_000


def test_everything_that_others_wrote_is_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b\u202e"
    changes = {"algorithm": evil, evil: "key", "task": {"class": f"a:{evil}"}}
    directory = make_run(tmp_path / "run<img>", num_problems=2, m=2, steps=2, names=(evil,), changes=changes)
    other = make_run(tmp_path / "other", num_problems=2, m=2, steps=2, names=(evil,))
    write_lines(
        directory / "eval_samples.jsonl",
        [{"benchmark": evil, "id": 0, "prompt": evil, "sample": 0, "response": evil, "reward": 1.0, "cluster": 0}],
    )
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, f"judge/failures/{evil}": 2}) + "\n" + evil + "\n")
    page = page_of(directory, other)
    assert not {"script", "img"} & read(page).tags
    assert not set("\x00\x1b\u202e") & set(page)
    page.encode("utf-8")
