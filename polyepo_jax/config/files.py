"""Configs in files and on the command line: loaded, overridden, checked, saved.

A config is written in Python (`get_config() -> Config`), overridden by `--section.field value` and saved as JSON
in the run directory, which is itself a valid config file. In JSON every dataclass names its class, as
`module:Class` or, where a config file defines it, `/path/to/config.py:Class`: users register nothing.
"""

import collections.abc
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tyro

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.config.sections import RunConfig
from polyepo_jax.errors import InputError

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def _reference(thing: Any) -> str:
    """`module:name`, or `/path/file.py:name` for what a config file defines."""
    module = sys.modules.get(thing.__module__)
    origin = getattr(module, "__polyepo_config_file__", None)
    return f"{origin or thing.__module__}:{thing.__qualname__}"


# Where classes that a config.json may name have gone since it was written.
_MOVED = {
    "polyepo_jax.tokenizer": "polyepo_jax.model.tokenizer",
    "polyepo_jax.update": "polyepo_jax.training.update",
}


def _resolve(reference: str, path: str) -> Any:
    place, _, name = reference.rpartition(":")
    place = _MOVED.get(place, place)
    try:
        module = _load_module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return functools.reduce(getattr, name.split("."), module)
    except Exception as error:  # importing runs code, the user's too
        raise InputError(f"{path}: {reference!r} cannot be found ({error}); expected 'module:Name'") from error


def to_json(value: Any, path: str = "") -> Any:
    """A config, or any part of it, as JSON: dataclasses become objects that name their class.

    Raises:
      InputError: a value that has no JSON form, named by its path.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        hints = typing.get_type_hints(type(value)) if any(isinstance(v, dict) for v in fields.values()) else {}
        dicts = {k: copy.deepcopy(v) for k, v in fields.items() if _is_dict(hints.get(k)) and _is_plain(v)}
        others = {k: to_json(v, _join(path, k)) for k, v in fields.items() if k not in dicts}
        return {"class": _reference(type(value))} | {k: dicts.get(k, others.get(k)) for k in fields}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, types.FunctionType):
        if "<" in value.__qualname__:
            raise InputError(
                f"{path}: define {value.__qualname__} by `def` at the top level of its file, to be found again"
            )
        return {"function": _reference(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{path}: a config holds dataclasses, functions, numbers, texts and lists of them, not {value!r}")


def _is_dict(hint: Any) -> bool:
    """Whether a field is declared to hold a dictionary, which is then data and names no class."""
    return (typing.get_origin(hint) or hint) in (dict, collections.abc.Mapping)


def _is_plain(value: Any) -> bool:
    """Whether a value is JSON as it stands."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def from_json(value: Any, hint: Any, path: str = "") -> Any:
    """The inverse of `to_json`, checking every key and type on the way.

    Raises:
      InputError: names the key's path, what was expected and what came.
    """
    where = path or "the config"
    if _is_dict(hint):
        return _checked_leaf(value, hint, where)
    if isinstance(value, dict) and set(value) == {"function"}:
        return _resolve(value["function"], where)
    if isinstance(value, list):
        if _is_dataclass(hint):
            raise InputError(f"{where}: expected the fields of a {hint.__name__}, got a list")
        # JSON has no tuples, and a config that serves as a key of caches has no lists.
        make = list if list in (hint, typing.get_origin(hint)) else tuple
        items = make(from_json(item, Any, f"{path}[{index}]") for index, item in enumerate(value))
        return _checked_leaf(items, hint, where)
    wanted = _dataclasses_of(hint)
    cls: Any = hint
    if isinstance(value, dict) and "class" in value:
        cls = _resolve(str(value["class"]), where)
        if not _is_dataclass(cls):
            raise InputError(f"{where}: {value['class']!r} is not a dataclass")
        if wanted and not issubclass(cls, wanted):
            raise InputError(f"{where}: expected a {' or '.join(w.__name__ for w in wanted)}, got a {cls.__name__}")
    elif isinstance(value, dict) and wanted:
        # Of several, the one with the fewest fields that has all that are named.
        names = {w: {field.name for field in dataclasses.fields(w)} for w in wanted}
        having = [w for w in wanted if value.keys() <= names[w]]
        cls = min(having, key=lambda w: len(names[w]), default=wanted[0])
    if not _is_dataclass(cls):
        return _checked_leaf(value, hint, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected the fields of a {cls.__name__}, got {value!r}")

    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    arguments = {}
    for name, item in value.items():
        if name == "class":
            continue
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown key {_join(path, name)!r}: {guess}allowed are {', '.join(sorted(fields))}")
        arguments[name] = from_json(item, hints[name], _join(path, name))
    missing = [name for name, f in fields.items() if name not in arguments and not _has_default(f)]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}")
    try:
        return cls(**arguments)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from error


def _dataclasses_of(hint: Any) -> tuple[Any, ...]:
    """The dataclasses that a hint allows: itself, or members of a union."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(filter(_is_dataclass, typing.get_args(hint) if is_union else [hint]))


def _is_dataclass(thing: Any) -> bool:
    return isinstance(thing, type) and dataclasses.is_dataclass(thing)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _checked_leaf(value: Any, hint: Any, path: str) -> Any:
    if hint is Any:
        return value
    try:
        return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True)).validate_python(value)
    except pydantic.ValidationError as error:
        expected = getattr(hint, "__name__", str(hint)).replace("typing.", "")
        expected = expected if typing.get_origin(hint) is None else str(hint).replace("typing.", "")
        raise InputError(f"{path}: expected {expected}, got {value!r} ({error.errors()[0]['msg']})") from error


def _load_module(path: Path) -> types.ModuleType:
    """A Python config file as a module; the same file is loaded once, so that its classes are the same too."""
    path = path.resolve()
    name = f"polyepo_config_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    module.__polyepo_config_file__ = str(path)  # type: ignore[attr-defined]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load(path: Path, expected: type[AnyConfig]) -> AnyConfig:
    """Reads a config file, `.py` with `get_config()` or `.json`, and checks every value.

    Raises:
      InputError: the file is missing, does not run, or holds something else than a valid `expected`.
    """
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(f"config {path} does not exist: give a Python file with get_config(), or a run's config.json")
    if path.suffix == ".json":
        try:
            value = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise InputError(f"config {path} is not readable JSON: {error}") from error
        config = from_json(value, expected)
    else:
        try:
            made = _load_module(path).get_config()
        except InputError:
            raise
        except Exception as error:  # the user's code
            raise InputError(f"config {path} failed: {type(error).__name__}: {error}") from error
        if not isinstance(made, expected):
            raise InputError(
                f"config {path}: get_config() must return a {expected.__name__}, got {type(made).__name__}"
            )
        config = from_json(to_json(made), expected)
    return config


def override(config: AnyConfig, arguments: Sequence[str], program: str) -> AnyConfig:
    """The config with `--section.field value` arguments applied, and checked again.

    Raises:
      InputError: an unknown key or a value of the wrong type.
    """
    shown = tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed
    changed = parse_command_line(type(config), arguments, program, default=config, config=shown)
    return from_json(to_json(changed), type(config))


def docstring_of(path: Path) -> str:
    """What a config file says of itself, for `--help`."""
    return inspect.getdoc(_load_module(path)) or "" if path.suffix == ".py" and path.is_file() else ""
