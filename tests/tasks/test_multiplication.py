"""The multiplication domain: solutions of every strategy, what a changed character makes of them, what is held out."""

import ast
import collections
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo_jax.tasks import Multiplication
from polyepo_jax.tasks.multiplication import (
    FACTORS,
    MAX_LENGTH,
    NUM_CLUSTERS,
    STRATEGIES,
    parse,
    solutions,
)
from polyepo_jax.types import DEGENERATE, Problem

TASK = Multiplication()
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def problem(a, b):
    return Problem(100 * a + b, f"{a}*{b}:", str(a * b))


def value_of(node):
    """Arithmetic by Python's own parser: a second opinion on what a part of a response amounts to."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    if isinstance(node, ast.UnaryOp):
        return -value_of(node.operand)
    assert isinstance(node, ast.Constant)
    return node.value


def values(response):
    """What each part amounts to; of numbers with leading zeros too."""
    parts = response.removesuffix("$").split("=")
    plain = (" ".join(word.lstrip("0") or "0" for word in _words(part)) for part in parts)
    return [value_of(ast.parse(text, mode="eval").body) for text in plain]


def _words(part):
    word = ""
    for character in part:
        if character.isdigit():
            word += character
            continue
        if word:
            yield word
        yield character
        word = ""
    if word:
        yield word


def is_decomposition(head, a, b):
    """Whether the two factors of the first part are those of a product, in their order; halved and doubled, too."""
    tree = ast.parse(head, mode="eval").body
    assert isinstance(tree, ast.BinOp)
    left, right = value_of(tree.left), value_of(tree.right)
    if "/" in head:
        halved, doubled = (tree.left, tree.right) if "/" in head.split(")")[0] else (tree.right, tree.left)
        of_halved, of_doubled = (a, b) if halved is tree.left else (b, a)
        return (value_of(halved.left), value_of(doubled.left)) == (of_halved, of_doubled)
    return (left, right) == (a, b)


@pytest.mark.parametrize(
    ("a", "b", "response", "name", "commuted"),
    [
        (43, 67, "(40+3)*67=2680+201=2881$", "split x whole", False),
        (43, 67, "43*(70-3)=3010-129=2881$", "whole x rounded", False),
        (43, 67, "67*43=(60+7)*43=2580+301=2881$", "split x whole", True),
        (43, 67, "(40+3)*(60+7)=2400+280+180+21=2680+201=2881$", "split x split", False),
        (43, 67, "(40+3)*(70-3)=2800-120+210-9=2680+201=2881$", "split x rounded", False),
        (42, 67, "(6*7)*67=6*469=2814$", "factors x whole", False),
        (42, 67, "(42/2)*(67*2)=21*134=2680+134=2814$", "halved x doubled", False),
        (98, 97, "97*98=(100-3)*(100-2)=10000-200-300+6=9800-294=9506$", "rounded x rounded", True),
    ],
)
def test_documented_solutions(a, b, response, name, commuted):
    parsed = parse(response)
    assert STRATEGIES[parsed.strategy].name == name
    assert bool(parsed.commuted) is commuted
    assert response in solutions(a, b, parsed.cluster)
    assert TASK.verify(problem(a, b), response) == 1
    assert TASK.verify(problem(b, a), response) == 0, "the factors are in another order"
    assert TASK.cluster(problem(a, b), [response]) == [parsed.cluster]


def check_solutions_and_mutations(count):
    """`count` solutions of every strategy are theirs and right; each with one character changed is right only where
    independent arithmetic says so. Returns how many changed ones stay valid, change their strategy, have none, or are
    wrong."""
    rng = np.random.default_rng(0)
    alphabet = TASK.tokenizer.alphabet
    outcomes = collections.Counter()
    for cluster in range(NUM_CLUSTERS):
        done = 0
        while done < count:
            a, b = rng.choice(FACTORS, 2).tolist()
            for text in solutions(a, b, cluster):
                done += 1
                assert parse(text).cluster == cluster
                assert TASK.verify(problem(a, b), text) == 1
                assert len(set(values(text))) == 1
                assert len(text) <= MAX_LENGTH
                position = int(rng.integers(len(text)))
                changed = f"{text[:position]}{alphabet[int(rng.integers(len(alphabet)))]}{text[position + 1 :]}"
                outcomes[judged(changed, text, a, b, cluster)] += 1
    return outcomes


def judged(changed, text, a, b, cluster):
    if changed == text:
        return "same"
    parsed = parse(changed)
    if parsed is None:
        assert TASK.verify(problem(a, b), changed) == 0
        return "degenerate"
    commuted, *_ = parts = changed.split("=")
    first, second = (b, a) if parsed.commuted else (a, b)
    adds_up = (
        set(values(changed)) == {a * b}
        and (not parsed.commuted or commuted == f"{b}*{a}")
        and is_decomposition(parts[parsed.commuted], first, second)
    )
    if TASK.verify(problem(a, b), changed) == 1:
        assert adds_up, changed
        return "valid"
    assert not adds_up, changed
    return "wrong" if parsed.cluster == cluster else "another strategy, wrong"


def test_solutions_and_mutations():
    outcomes = check_solutions_and_mutations(200)
    assert outcomes["wrong"] > 1000
    assert outcomes["degenerate"] > 1000


@pytest.mark.slow
def test_ten_thousand_solutions_and_mutations_of_every_strategy():
    outcomes = check_solutions_and_mutations(10_000)
    assert outcomes["wrong"] + outcomes["degenerate"] + outcomes["another strategy, wrong"] > 200_000


@given(st.sampled_from(FACTORS), st.sampled_from(FACTORS), st.integers(0, 2**32 - 1))
def test_demonstrations_have_at_most_a_wrong_result(a, b, seed):
    for error_rate in (0, 1):
        text = Multiplication(error_rate=error_rate).demonstrate(problem(a, b), np.random.default_rng(seed))
        assert parse(text) is not None
        assert TASK.verify(problem(a, b), text) == 1 - error_rate
        *before, result = values(text)
        assert set(before) == {a * b}
        assert (result == a * b) == (error_rate == 0)
        assert TASK.tokenizer.decode(TASK.tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "response",
    [
        "",
        "$",
        "2881$",  # no work
        "43*67=2881$",
        "67*43=2881$",
        "(40+3)*67=2881$",  # a step left out
        "(40+3)*67=2680+201=2881",  # unterminated
        "(40+3)*67=2680+201=2881$$",
        "(40+3)*67=2680+201=2881$(40+3)*67=2680+201=2881$",
        "(20+23)*67=1340+1541=2881$",  # not by place value
        "(40+3)*67=2000+680+201=2881$",
        "67*43=67*43=(60+7)*43=2580+301=2881$",
        "(86/2)*(67*1)=43*67=2680+201=2881$",
        "(40+3)*67=2680+201=2881\n$",
        " (40+3)*67=2680+201=2881$",
        "(40+3)*67=2680+201=28\u0661$",  # a digit, but not an ASCII one
        "(40+3)*67=2680+201=" + "9" * 100_000 + "$",
        "(" * 100_000,
        "=" * 100_000 + "$",
    ],
)
def test_what_is_malformed_is_degenerate(response):
    assert TASK.cluster(problem(43, 67), [response]) == [DEGENERATE]
    assert TASK.verify(problem(43, 67), response) == 0


def test_a_slip_keeps_its_strategy_and_earns_nothing():
    for slip in ("(40+3)*67=2680+211=2881$", "(40+3)*67=2680+201=2882$", "(40+4)*67=2680+268=2948$"):
        assert TASK.cluster(problem(43, 67), [slip]) == [0]
        assert TASK.verify(problem(43, 67), slip) == 0


@pytest.mark.parametrize(
    "response",
    [
        "(40+3)*67=2881+0=2881$",
        "(40+3)*67=1+2880=2881$",
        "(40+3)*67=201+2680=2881$",
        "(40+3)*67=02680+201=2881$",
        "(40+3)*(60+7)=2881+0+0+0=0+2881=2881$",
        "(40+3)*(60+7)=2400+280+180+21=2640+241=2881$",
        "67*43=(60+7)*43=2881+0=2881$",
    ],
)
def test_work_that_was_not_done_earns_nothing(response):
    """All parts have the product's value, but are not what the decomposition leads to."""
    assert TASK.cluster(problem(43, 67), [response]) != [DEGENERATE]
    assert set(values(response)) == {43 * 67}
    assert TASK.verify(problem(43, 67), response) == 0
    for other in ("(6*7)*67=1*2814=2814$", "(42/2)*(67*2)=2814*1=2814+0=2814$"):
        assert TASK.verify(problem(42, 67), other) == 0


def test_splits_share_no_product_in_either_order():
    splits = {split: TASK.problems(split) for split in ("train", "validation", "test")}
    assert {split: len(problems) for split, problems in splits.items()} == {
        "train": 4919,
        "validation": 329,
        "test": 1313,
    }
    products = {split: {tuple(sorted(divmod(p.id, 100))) for p in problems} for split, problems in splits.items()}
    assert sum(map(len, products.values())) == len(set.union(*products.values()))
    problems = [p for part in splits.values() for p in part]
    assert len({p.id for p in problems}) == len(problems) == 81 * 81
    assert all(p.prompt == "{}*{}:".format(*divmod(p.id, 100)) for p in problems)
    other = Multiplication(split_seed=1).problems("test")
    assert other != splits["test"]
    assert TASK.problems("test") is splits["test"]


def test_a_hidden_requirement_is_met_by_four_strategies():
    counts = collections.Counter()
    for a, b in ((42, 68), (46, 84), (64, 28)):
        met = [
            cluster
            for cluster in range(NUM_CLUSTERS)
            if TASK.meets_hidden_requirement(problem(a, b), solutions(a, b, cluster)[0])
        ]
        assert len(met) == 4
        counts.update(met)
    assert len(counts) > 4, "they differ from product to product"
    assert not TASK.meets_hidden_requirement(problem(42, 68), "2856$")


@pytest.mark.parametrize("settings", [{"error_rate": 1.1}, {"error_rate": -0.1}, {"spread": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Multiplication(**settings)
