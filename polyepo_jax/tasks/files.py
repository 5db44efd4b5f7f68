"""The rows of a file of problems: JSON lines, JSON, CSV and the gzip of each, or parquet.

Numbers are kept as they are spelled: no rounding, and no limit on their digits.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_READ = ".jsonl, .ndjson, .json, .csv and .tsv, each also as .gz, .parquet, and a directory of .parquet files"

Located = tuple[str, Any]  # where a row is, for messages, and what it holds


class Number(str):
    """A number as the file spells it."""


def stem(path: str) -> str:
    """A file's name without its ending: `train` of data/train.jsonl.gz."""
    name = Path(path)
    return Path(name.stem).stem if name.suffix.lower() == ".gz" else name.stem


def lookup(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field, which may be a path with dots: `reward_model.ground_truth`. None below what is null.

    Raises:
      KeyError: there is no such field.
    """
    if field in row:  # a column may have a dot in its name
        return row[field]
    name, dot, rest = field.partition(".")
    if not dot or not isinstance(inner := row[name], (Mapping, type(None))):
        raise KeyError(field)
    return None if inner is None else lookup(inner, rest)


def columns(there: Sequence[str], fields: Sequence[str]) -> list[str]:
    """The columns of a table that hold the fields, which are there."""
    return sorted({field if field in there else field.partition(".")[0] for field in fields})


def rows_of(path: Path, fields: Sequence[str], check: Callable[[Sequence[str], str], None]) -> Iterator[Located]:
    """(where it is, row) for all rows of a file, in order.

    Args:
      fields: those that are wanted, the problem's first: other columns of a parquet file are not read.
      check: called as (columns, file) before the rows of a parquet file are read, to refuse one that lacks a field.

    Raises:
      ValueError: the file cannot be read, or is not what its ending says: names the file, and the line where it can.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, fields, check)
        return
    zipped = path.suffix.lower() == ".gz"
    ending = Path(path.stem).suffix.lower() if zipped else path.suffix.lower()
    if ending not in (*_LINES, ".json", *_DELIMITERS):
        kind = f"a file that ends in {''.join(path.suffixes)!r}" if path.suffix else "a file without an ending"
        why = f"{kind} is not read" if path.exists() else "there is no such file"
        raise ValueError(f"{path}: {why}; what is read: {_READ}")
    text = _text(path, zipped)
    if ending in _DELIMITERS:
        yield from _table_rows(text, str(path), _DELIMITERS[ending])
    elif ending == ".json":
        yield from _json_rows(text, str(path), fields[0])
    else:
        yield from _lines(text, str(path))


def _text(path: Path, zipped: bool) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if zipped else data).decode("utf-8-sig")  # a byte order mark is no text
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        kind = "the gzip of text in UTF-8" if zipped else f"{_kind(path)} in UTF-8"
        raise ValueError(f"{path}: cannot be read ({error}); expected {kind}") from error


def _kind(path: Path) -> str:
    return "a table" if path.suffix.lower() in _DELIMITERS else "JSON lines"


def _lines(text: str, path: str) -> Iterator[Located]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold the other ends of line that Python knows
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def _json_rows(text: str, path: str, problem: str) -> Iterator[Located]:
    """Of one list, of an object that holds one list, or of lines."""
    found = _parse(text, path) if text.lstrip().startswith("[") else _only_list(text, path, problem)
    if found is None:
        yield from _lines(text, path)
        return
    yield from ((f"{path}, item {number}", row) for number, row in enumerate(found))


def _only_list(text: str, path: str, problem: str) -> list[Any] | None:
    """The list in a text that is one object; None of a text of several, or of one that is itself a row."""
    try:
        whole = _parse(text, path)
    except ValueError:
        return None  # lines, or a mistake that is told by its line
    if not isinstance(whole, dict) or problem.partition(".")[0] in whole or problem in whole:
        return None
    lists = {name: value for name, value in whole.items() if isinstance(value, list)}
    if len(lists) != 1:
        raise ValueError(
            f"{path}: expected a list of rows, an object that holds one list, or lines; got one object with "
            f"{len(lists)} lists and without a field {problem!r}; it has {', '.join(map(repr, whole)) or 'nothing'}"
        )
    return next(iter(lists.values()))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error


def _table_rows(text: str, path: str, delimiter: str) -> Iterator[Located]:
    """Of a table whose first line names its columns; cells may hold line ends in quotation marks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where}: not a row of a table ({error})") from error
        if not cells:  # an empty line
            continue
        if not names:
            names = cells
            if repeated := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{where}: two columns are called {min(repeated)!r}: name them apart")
        elif len(cells) != len(names):
            raise ValueError(
                f"{where}: {len(cells)} cells under {len(names)} columns ({', '.join(map(repr, names))}); a cell with "
                f"{delimiter!r} in it belongs in quotation marks"
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _parquet_rows(path: Path, fields: Sequence[str], check: Callable[[Sequence[str], str], None]) -> Iterator[Located]:
    import pyarrow  # here, as it takes a quarter of a second
    from pyarrow import parquet

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: there is no .parquet file in this directory")
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                names = opened.schema_arrow.names
                check(names, str(file))
                rows = opened.read(columns=columns(names, fields)).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file}: cannot be read ({first_line(error)}); expected a parquet file") from error
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows))


def first_line(error: Exception) -> str:
    """Of a library's message, which may be long."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
