"""What a model directory in Hugging Face's format says of its tokenizer, checked file by file."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

# Stands for a turn's text while a template is taken apart: one private-use character, which no template strips.
_PLACEHOLDER = "\ue000"

# What templates take for today: the prompts of a run are the same when it is resumed, or evaluated, another day.
_TODAY = datetime.datetime(2024, 7, 26)  # the date that Llama 3's templates show where they cannot ask

# Tokens that tokenizer_config.json may name; templates know them by these names.
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the answers in a template for other programs; what it encloses renders as it is."""

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A chat template, compiled in jinja's sandbox.

    Attributes:
      path: the file that holds it.
      before, after: what it puts around the text of a single user turn, the opening of the answer included.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], arguments: Mapping[str, Any] | None = None):
        """Finds the template beside, or in, the settings (of tokenizer_config.json).

        arguments: further names that it knows, e.g. `enable_thinking`.

        Raises:
          ValueError: there is none, it does not compile, it fails, or it does not show a user's text exactly once.
        """
        found = _template_source(directory, settings)
        if found is None:
            raise ValueError(
                f"{directory}: there is no chat template in tokenizer_config.json, chat_template.jinja or "
                "chat_template.json; a base model without one takes bare prompts: chat = False"
            )
        source, self.path = found
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: _TODAY.strftime(form)}
        environment.filters["tojson"] = _to_json
        tokens = {name: text for name in TOKEN_NAMES if (text := token_text(settings, name)) is not None}
        self._names = {"tools": None, "documents": None, **tokens, **(arguments or {})}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"{self.path}: the chat template does not compile: {error}") from error
        parts = self.render([{"role": "user", "content": _PLACEHOLDER}], opens_answer=True).split(_PLACEHOLDER)
        if len(parts) != 2:
            raise ValueError(
                f"{self.path}: the chat template shows a user's text {len(parts) - 1} times, expected once; "
                "mend it, or use bare prompts by chat = False"
            )
        self.before, self.after = parts

    def render(self, messages: Sequence[Mapping[str, str]], opens_answer: bool) -> str:
        """The text of the turns {role, content}, and with `opens_answer` what an answer is to follow.

        Raises:
          ValueError: the template refuses the messages, or fails.
        """
        try:
            return self._template.render({**self._names, "messages": messages, "add_generation_prompt": opens_answer})
        except Exception as error:  # the template is a program: it may fail in any way
            raise ValueError(
                f"{self.path}: the chat template fails: {type(error).__name__}: {error}; mend it, or use bare "
                "prompts by chat = False"
            ) from error

    def parts(self, roles: Sequence[str]) -> tuple[list[str], list[int]]:
        """What the template puts before, between and after the texts of turns, and which turn's text comes when.

        Raises:
          ValueError: as of `render`; or it does not show the text of each turn exactly once.
        """
        marks = [chr(ord(_PLACEHOLDER) + number) for number in range(len(roles))]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        pieces = re.split(f"([{marks[0]}-{marks[-1]}])", self.render(turns, opens_answer=True))
        shown = [marks.index(mark) for mark in pieces[1::2]]
        for number, role in enumerate(roles):
            if shown.count(number) != 1:
                raise ValueError(
                    f"{self.path}: the chat template shows the text of turn {number} ({role}) {shown.count(number)} "
                    f"times, expected once, in a conversation of {', '.join(roles)}; mend it, or leave such turns out"
                )
        return pieces[::2], shown

    def after_answer(self) -> str:
        """What follows the text of an answer; empty if the template does not show answers."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PLACEHOLDER}]
        try:
            return self.render(turns, opens_answer=False).partition(_PLACEHOLDER)[2]
        except ValueError:
            return ""


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's own filter escapes for HTML


def has_chat_template(directory: Path) -> bool:
    """Whether a model directory has a template, whatever that is worth."""
    return _template_source(directory, read_json(directory / "tokenizer_config.json")) is not None


def _template_source(directory: Path, settings: Mapping[str, Any]) -> tuple[str, Path] | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return _read_text(path), path
    for path, holder in (
        (directory / "tokenizer_config.json", settings),
        (directory / "chat_template.json", read_json(directory / "chat_template.json")),
    ):
        found = holder.get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default", found)
        if isinstance(found, str):
            return found, path
        if found is not None:
            raise ValueError(f"{path}: chat_template must be a text or a list with one named 'default'")
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error}); get the file anew") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file.

    Raises:
      ValueError: the file cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); get the file anew") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}; get the file anew")
    return value


def read_tokenizer(directory: Path, special: Sequence[str]) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.json, which neither cuts nor pads.

    special: tokens that are special even if the file does not say so; those it lacks are passed over.

    Raises:
      ValueError: no such directory or file, or not a tokenizer.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory; expected one with tokenizer.json")
    path = directory / "tokenizer.json"
    if not path.exists():
        slow = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (directory / name).exists()]
        advice = (
            f"{' and '.join(slow)} must be converted to it, which transformers does: "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )
        raise ValueError(f"{path}: there is no such file; {advice if slow else 'get it from where the model is from'}")
    source = _read_text(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the library raises the bare class
        raise ValueError(f"{path}: not a tokenizer ({error}); get the file anew") from error
    if not tokenizer.get_vocab_size():
        raise ValueError(f"{path}: a tokenizer without tokens; get the file anew")
    tokenizer.add_special_tokens([token for token in special if _is_plain(tokenizer, token)])
    tokenizer.no_truncation()  # the file may ask for either, and both would change prompts
    tokenizer.no_padding()
    return tokenizer


def _is_plain(tokenizer: tokenizers.Tokenizer, token: str) -> bool:
    index = tokenizer.token_to_id(token)
    added = tokenizer.get_added_tokens_decoder()
    return index is not None and not (index in added and added[index].special)


def token_text(settings: Mapping[str, Any], name: str) -> str | None:
    """A token that tokenizer_config.json names, as `"<s>"` or `{"content": "<s>", ...}`."""
    value = settings.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
