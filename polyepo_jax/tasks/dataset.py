"""Where the problems of a set are, what its fields are called, and its records as they are read.

A set is a file (see `files`), one of the Hugging Face hub, or what a function of the user's yields.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyepo_jax.tasks.files import Number, columns, first_line, lookup, rows_of, stem
from polyepo_jax.types import Turns

ROLES = ("system", "user", "assistant")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold half a character, which no tokenizer takes


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set of problems with the final answer to each.

    Attributes:
      name: shown in eval.json and in messages.
      hub: its name on the Hugging Face hub (extra `hub`), or a directory as of `datasets.load_dataset`.
      path: a local file that is read in place of the hub: .jsonl, .json (lines, one list, or an object that holds
        one), .csv or .tsv with names in the first line, each also as .gz, or .parquet; or a directory of .parquet
        files, read in the order of their names.
      subset: on the hub, its configuration.
      split: on the hub.
      problem, answer: the names of the fields; with dots, of one within another: `reward_model.ground_truth`. A
        problem is a text, or a list of chat messages of which the last is the user's; an answer is a text, a number,
        or one of them in a list.
      extract: the final answer in the text of the answer field, a text; None where the field holds nothing else.
      fields_seen: the fields were seen in the data itself. Where they are only what others' code reads, the message
        on a field that is not there says so.
    """

    name: str
    hub: str | None = None
    path: str | None = None
    subset: str | None = None
    split: str = "test"
    problem: str = "problem"
    answer: str = "answer"
    extract: Callable[[str], str] | None = None
    fields_seen: bool = True

    def __post_init__(self):
        if self.hub is None and self.path is None:
            raise ValueError(f"dataset {self.name!r} is nowhere: give its path, or hub for its name on the hub")


# What a task takes for a set: a Dataset; a path, for a file with the fields `problem` and `answer`; or a function
# without arguments that yields mappings with these keys.
Source = Dataset | str | Callable[[], Iterable[Mapping[str, Any]]]


class Record(NamedTuple):
    """One row as it was read; an empty text stands for what is not there.

    where: leads to the row in messages. turns: what precedes the problem in a conversation. refused: why there is no
    answer that could be used.
    """

    where: str
    problem: str
    answer: str
    turns: Turns = ()
    refused: str = ""


def name_of(source: Source) -> str:
    """A set's name in eval.json and in messages."""
    if isinstance(source, Dataset):
        return source.name
    return stem(source) if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)


def records(source: Source) -> Iterator[Record]:
    """All rows in order.

    Raises:
      ValueError: the set cannot be had, or a row is not as described: says which and what to do.
    """
    dataset = source if isinstance(source, Dataset) else Dataset(name_of(source), path=str(source))
    for where, row in _rows_of(source, dataset):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{where}: expected an object of {dataset.problem!r} and {dataset.answer!r}, got {str(row)!r:.80}"
            )
        turns, problem = _conversation(_value(dataset, "problem", row, where), dataset.problem, where)
        answers = _value(dataset, "answer", row, where)
        if isinstance(answers, (list, tuple)) and len(answers) > 1:
            record = Record(where, problem, "", turns, f"there are {len(answers)} answers, expected one")
        else:
            record = Record(where, problem, _answer(answers, dataset, where), turns)
        if _SURROGATE.search(record.problem + record.answer + "".join(text for _, text in turns)):
            raise ValueError(f"{where}: a lone surrogate (\\ud800 to \\udfff), which is no character; mend the text")
        yield record


def _rows_of(source: Source, dataset: Dataset) -> Iterator[tuple[str, Any]]:
    if not isinstance(source, (str, Dataset)):
        yield from _function_rows(source, dataset.name)
    elif dataset.path is None:
        yield from _hub_rows(dataset)
    else:
        fields = (dataset.problem, dataset.answer)
        yield from rows_of(Path(dataset.path), fields, lambda names, where: _check_columns(dataset, names, where))


def _value(dataset: Dataset, setting: str, row: Mapping[str, Any], where: str) -> Any:
    """The field that the setting `problem` or `answer` names.

    Raises:
      ValueError: it is not there.
    """
    field = getattr(dataset, setting)
    try:
        return lookup(row, field)
    except KeyError:
        raise _no_field(dataset, setting, _names(row), where) from None


def _check_columns(dataset: Dataset, names: Sequence[str], where: str) -> None:
    for setting, field in (("problem", dataset.problem), ("answer", dataset.answer)):
        if field not in names and field.partition(".")[0] not in names:
            raise _no_field(dataset, setting, names, where)


def _names(row: Mapping[str, Any]) -> list[str]:
    """The fields of a row, those of an object within it as paths."""
    nested = {name: value if isinstance(value, Mapping) else {} for name, value in row.items()}
    return [path for name, inner in nested.items() for path in ([f"{name}.{key}" for key in inner] or [name])]


_NOT_SEEN = "; those declared are what others' code reads, and were not compared with the data"


def _no_field(dataset: Dataset, setting: str, names: Sequence[str], where: str) -> ValueError:
    return ValueError(
        f"{where}: no field {getattr(dataset, setting)!r}; there are {', '.join(map(repr, names)) or 'none'}: name the "
        f"right one by Dataset({dataset.name!r}, ..., {setting}=...){'' if dataset.fields_seen else _NOT_SEEN}"
    )


def _conversation(value: Any, field: str, where: str) -> tuple[Turns, str]:
    """The turns before the problem, and its text: of a text there are none, of chat messages all but the last."""
    if value is None or (isinstance(value, str) and not isinstance(value, Number)):
        return (), value or ""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(message, Mapping) for message in value):
        raise ValueError(
            f"{where}: {field!r} must be a text, got {value!r:.80}; a list must be one of chat messages, each with "
            "role and content"
        )
    turns = []
    for number, message in enumerate(value):
        role, text = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(text, str) or isinstance(text, Number):
            raise ValueError(
                f"{where}: message {number} of {field!r} must have a role of {', '.join(ROLES)} and a text as content, "
                f"got {dict(message)!r:.80}"
            )
        turns.append((str(role), text))
    if turns[-1][0] != "user":
        raise ValueError(f"{where}: the last message of {field!r} must be the user's, got one of {turns[-1][0]!r}")
    return tuple(turns[:-1]), turns[-1][1]


def _answer(value: Any, dataset: Dataset, where: str) -> str:
    """The answer of a field, which may be a list of one."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    answer = _as_text(value)
    if answer is None:
        raise ValueError(f"{where}: {dataset.answer!r} must be a number or a text, got {value!r:.80}")
    return answer if dataset.extract is None else _extracted(dataset.extract, answer, where)


def _as_text(answer: Any) -> str | None:
    """An answer field's text, empty for null and NaN (a number column's null); None of what is no answer."""
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        return ""
    if isinstance(answer, str):
        return str(answer)  # a Number becomes a plain text
    if isinstance(answer, float):
        return np.format_float_positional(answer, trim="0")  # 27.0, and no exponent
    return str(answer) if isinstance(answer, (int, Decimal)) and not isinstance(answer, bool) else None


def _extracted(extract: Callable[[str], str], answer: str, where: str) -> str:
    try:
        final = extract(answer)
    except Exception as error:  # the user's code
        raise ValueError(f"{where}: extract failed on {answer!r:.80} ({type(error).__name__}: {error})") from error
    if not isinstance(final, str):
        raise ValueError(f"{where}: extract must return a text (empty for none), got {final!r:.80} of {answer!r:.80}")
    return final


def _function_rows(function: Callable[[], Iterable[Any]], name: str) -> Iterator[tuple[str, Any]]:
    try:
        items = list(function())
    except Exception as error:  # the user's code
        raise ValueError(f"{name}() failed: {type(error).__name__}: {error}") from error
    yield from ((f"{name}(), item {number}", item) for number, item in enumerate(items))


def _hub_rows(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"{dataset.name}: to fetch {dataset.hub} from the hub needs the package datasets: pip install -e '.[hub]', "
            "or give the path of a local copy"
        ) from error
    try:
        rows = load_dataset(dataset.hub, dataset.subset, split=dataset.split)
    except Exception as error:  # of many kinds: no network, no such set, subset or split
        raise ValueError(
            f"{dataset.name}: {dataset.hub} cannot be had from the hub ({first_line(error)}): see that there is a "
            "network and that hub, subset and split are right, or give the path of a local copy"
        ) from error
    _check_columns(dataset, rows.column_names, str(dataset.hub))
    chosen = rows.select_columns(columns(rows.column_names, (dataset.problem, dataset.answer)))  # others may be images
    yield from ((f"{dataset.hub}, row {number}", row) for number, row in enumerate(chosen))
