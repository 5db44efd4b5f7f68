"""Text to token ids and back."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from polyepo_jax.model.chat_template import TOKEN_NAMES, ChatTemplate, read_json, read_tokenizer, token_text
from polyepo_jax.types import Turns

# Stands in decoded text for an id that is no character: no parser takes it for part of an answer.
UNKNOWN = "\ufffd"


class Tokenizer(Protocol):
    """What the package needs of a tokenizer.

    vocab_size: ids are below it. pad_id: fills rows, never a stop token. stop_ids: end a completion.
    encode: a text. encode_prompt: the text of one problem, as the model is to see it, after the turns of a conversation
    that precede it (ValueError from one that knows no turns). encode_completion: a demonstration, its end token
    included.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str, turns: Turns = ()) -> list[int]: ...
    def encode_completion(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
    """One token a character, id 0 for padding.

    Attributes:
      alphabet: the characters, without repetition.
      stop: the character that ends a completion; it is part of the decoded text, and of a demonstration's.
    """

    alphabet: str
    stop: str

    def __post_init__(self):
        if len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError(f"the alphabet repeats a character: {self.alphabet!r}")
        if len(self.stop) != 1 or self.stop not in self.alphabet:
            raise ValueError(f"the stop character must be one of the alphabet {self.alphabet!r}, got {self.stop!r}")

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet) + 1

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.alphabet.index(self.stop) + 1,)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters.

        Raises:
          ValueError: a character outside the alphabet.
        """
        ids = [self.alphabet.find(character) + 1 for character in text]
        if 0 in ids:
            raise ValueError(f"character {text[ids.index(0)]!r} of {text!r} is not in the alphabet {self.alphabet!r}")
        return ids

    def encode_prompt(self, text: str, turns: Turns = ()) -> list[int]:
        if turns:
            raise ValueError(f"a tokenizer of characters knows no turns, got {turns!r:.80} before the prompt")
        return self.encode(text)

    def encode_completion(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Characters of the ids; UNKNOWN for padding and for what a larger model vocabulary has beyond the alphabet."""
        return "".join(self.alphabet[i - 1] if 0 < i <= len(self.alphabet) else UNKNOWN for i in ids)


@dataclasses.dataclass(frozen=True)
class HFTokenizer:
    """The tokenizer of a model directory in Hugging Face's format.

    The directory is read on first use, once in a process, and every method raises ValueError, naming the file, for
    what is wrong with it. Nothing in it is executed but its chat template, in jinja's sandbox. Problems and responses
    are hostile text: a special token spelled out in them stays text.

    Attributes:
      directory: holds tokenizer.json and, where the model has them, tokenizer_config.json, generation_config.json,
        config.json and a chat template (in tokenizer_config.json, chat_template.jinja or chat_template.json).
      chat: a prompt is one user turn of the chat template; False for the bare text.
      chat_template_kwargs: what the template is told beside the turns, e.g. {"enable_thinking": False}; JSON.
    """

    directory: str
    chat: bool = True
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def _files(self) -> "_Files":
        if not self.directory:  # which would be the one that the user happens to be in
            raise ValueError("no directory says which tokenizer: set task.tokenizer_dir, or init.model_dir")
        arguments = json.dumps(self.chat_template_kwargs, sort_keys=True)
        return _load(os.path.realpath(self.directory), self.chat, arguments)

    @property
    def vocab_size(self) -> int:
        """1 + the largest id, added tokens included; a model's embedding may have more rows."""
        return max(self._files.known_ids) + 1

    @property
    def pad_id(self) -> int:
        """The padding token, unless it is an end token as well: then another special token."""
        return self._files.pad_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end tokens of generation_config.json (else config.json), of tokenizer_config.json and of a chat turn."""
        return self._files.stop_ids

    def encode(self, text: str) -> list[int]:
        """Ids of the text and of nothing else.

        Raises:
          ValueError: a lone surrogate in the text.
        """
        return _ids(self._files.plain, text)

    def encode_prompt(self, text: str, turns: Turns = ()) -> list[int]:
        """With `chat` a user's turn and the opening of the answer; else the text, after the token that begins texts.

        turns: (role, text) of what precedes it in the conversation.

        Raises:
          ValueError: a lone surrogate in the text, a chat template that refuses or does not show it, or turns
            without `chat`.
        """
        files = self._files
        if files.turn is None:
            if turns:
                raise ValueError(f"a prompt with turns before it, {turns!r:.80}, needs a chat template: chat = True")
            return [*files.start_ids, *_ids(files.plain, text)]
        if turns:
            return _encode_conversation((*turns, ("user", text)), files.turn.template, files)
        return files.turn.encode(text, files)

    def encode_completion(self, text: str) -> list[int]:
        """The text and the end token: with `chat` that of a turn."""
        return [*self.encode(text), self._files.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids without special tokens; UNKNOWN for what a padded model vocabulary has beyond them."""
        files, parts = self._files, []
        for known, run in itertools.groupby(ids, files.known_ids.__contains__):
            run_ids = list(run)
            parts.append(files.plain.decode(run_ids, skip_special_tokens=True) if known else UNKNOWN * len(run_ids))
        return "".join(parts)


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except TypeError as error:
        raise ValueError(f"a lone surrogate has no encoding, and there is one in {text!r:.200}") from error


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A user's turn and the opening of the answer: head_ids, then `start`, the user's text and `end`, then tail_ids.

    head_ids end with the last special token before the text, and tail_ids begin with the first one after it.
    """

    template: ChatTemplate
    special_ids: list[int]
    head_ids: list[int]
    start: str
    end: str
    tail_ids: list[int]

    @classmethod
    def of(cls, template: ChatTemplate, markup: tokenizers.Tokenizer, special_ids: frozenset[int]) -> "_Turn":
        head = markup.encode(template.before, add_special_tokens=False)
        tail = markup.encode(template.after, add_special_tokens=False)
        cut_head = max((k + 1 for k, i in enumerate(head.ids) if i in special_ids), default=0)
        cut_tail = next((k for k, i in enumerate(tail.ids) if i in special_ids), len(tail.ids))
        return cls(
            template,
            [i for i in head.ids + tail.ids if i in special_ids],
            head.ids[:cut_head],
            template.before[head.offsets[cut_head - 1][1] :] if cut_head else template.before,
            template.after[: tail.offsets[cut_tail][0]] if cut_tail < len(tail.ids) else template.after,
            tail.ids[cut_tail:],
        )

    def encode(self, text: str, files: "_Files") -> list[int]:
        rendered = self.template.render([{"role": "user", "content": text}], opens_answer=True)
        ids = _ids(files.markup, rendered)
        if [i for i in ids if i in files.special_ids] == self.special_ids:
            return ids
        # The text spells special tokens out: between those of the template, all is text.
        before, after = self.template.before, self.template.after
        between = rendered.removeprefix(before).removesuffix(after)  # not `text`: templates strip it
        if before + between + after != rendered:
            raise ValueError(f"{self.template.path}: the chat template changes with its user's text, here {text!r:.99}")
        return [*self.head_ids, *_ids(files.plain, self.start + between + self.end), *self.tail_ids]


def _encode_conversation(turns: Turns, template: ChatTemplate, files: "_Files") -> list[int]:
    """All turns and the opening of the answer; special tokens that a text spells out stay text."""
    between, order = template.parts([role for role, _ in turns])
    special = [i for part in between for i in files.markup.encode(part, add_special_tokens=False).ids]
    rendered = template.render([{"role": role, "content": text} for role, text in turns], opens_answer=True)
    ids = _ids(files.markup, rendered)
    if [i for i in ids if i in files.special_ids] == [i for i in special if i in files.special_ids]:
        return ids
    for strip in (str, str.strip):  # templates may strip
        texts = [strip(turns[k][1]) for k in order]
        if "".join(itertools.chain(*zip(between, [*texts, ""], strict=True))) == rendered:
            return _encode_between(between, texts, files)
    raise ValueError(f"{template.path}: the chat template changes with the text of its turns, here {turns!r:.99}")


def _encode_between(between: Sequence[str], texts: Sequence[str], files: "_Files") -> list[int]:
    """Ids of between[0], texts[0], between[1] ... : special tokens are found in `between` alone."""
    ids: list[int] = []
    plain = ""  # since the last special token
    for part, text in zip(between, [*texts, ""], strict=True):
        encoding = files.markup.encode(part, add_special_tokens=False)
        special = [k for k, i in enumerate(encoding.ids) if i in files.special_ids]
        if special:
            ids += _ids(files.plain, plain + part[: encoding.offsets[special[0]][0]])
            ids += encoding.ids[special[0] : special[-1] + 1]
            plain = part[encoding.offsets[special[-1]][1] :]
        else:
            plain += part
        plain += text
    return ids + _ids(files.plain, plain)


@dataclasses.dataclass(frozen=True)
class _Files:
    """What a directory holds. `markup` finds special tokens in a text; to `plain` they are text."""

    markup: tokenizers.Tokenizer
    plain: tokenizers.Tokenizer
    known_ids: frozenset[int]
    special_ids: frozenset[int]
    stop_ids: tuple[int, ...]
    end_id: int
    pad_id: int
    start_ids: tuple[int, ...]
    turn: _Turn | None


@functools.lru_cache(maxsize=8)
def _load(directory: str, chat: bool, arguments: str) -> _Files:
    path = Path(directory)
    settings, generation = read_json(path / "tokenizer_config.json"), read_json(path / "generation_config.json")
    named = {name: text for name in TOKEN_NAMES if (text := token_text(settings, name)) is not None}
    markup, plain = (read_tokenizer(path, list(named.values())) for _ in range(2))
    plain.encode_special_tokens = True
    known = frozenset(markup.get_vocab(with_added_tokens=True).values())
    special = frozenset(i for i, token in markup.get_added_tokens_decoder().items() if token.special)
    template = ChatTemplate(path, settings, json.loads(arguments)) if chat else None

    stops = _end_ids(generation, path / "generation_config.json", known)
    stops = stops or _end_ids(read_json(path / "config.json"), path / "config.json", known)
    ids = {name: markup.token_to_id(text) for name, text in named.items()}
    if "eos_token" in ids and ids["eos_token"] is None:
        raise ValueError(
            f"{path / 'tokenizer_config.json'}: eos_token is {named['eos_token']!r}, which tokenizer.json does not "
            "have: get both files from one model"
        )
    # A base model's generation_config.json may name the end of a text only, while its turns end with another token.
    ends = [ids.get("eos_token"), None if template is None else _turn_end(template, markup, special)]
    stop_ids = tuple(dict.fromkeys([*stops, *(i for i in ends if i is not None)]))
    if not stop_ids:
        raise ValueError(
            f"{path}: no end token; expected eos_token_id in generation_config.json or config.json, or eos_token in "
            "tokenizer_config.json: add one"
        )
    end_id = next((i for i in reversed(ends) if chat and i is not None), stop_ids[0])

    candidates = [generation.get("pad_token_id"), *map(ids.get, ("pad_token", "unk_token"))]
    candidates += [*sorted(special), *sorted(known)]
    pad_id = next((i for i in candidates if type(i) is int and i in known and i not in stop_ids), None)
    if pad_id is None:
        raise ValueError(f"{path / 'tokenizer.json'}: all tokens are end tokens, and none is left to pad with")
    turn = None if template is None else _Turn.of(template, markup, special)
    return _Files(markup, plain, known, special, stop_ids, end_id, pad_id, _start_ids(markup), turn)


def _end_ids(holder: Mapping[str, Any], path: Path, known: frozenset[int]) -> list[int]:
    value = holder.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or i not in known for i in ids):
        raise ValueError(
            f"{path}: eos_token_id is {value}; expected one or several ids of tokenizer.json, of which {max(known)} is "
            "the largest: get both files from one model"
        )
    return ids


def _start_ids(markup: tokenizers.Tokenizer) -> tuple[int, ...]:
    encoding = markup.encode("a")  # in the mask, 1 is a token that the tokenizer added
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return tuple(i for i, _ in itertools.takewhile(lambda pair: pair[1], pairs))


def _turn_end(template: ChatTemplate, markup: tokenizers.Tokenizer, special: frozenset[int]) -> int | None:
    """The special token that the template puts after an answer."""
    ids = markup.encode(template.after_answer(), add_special_tokens=False).ids
    return next((i for i in ids if i in special), None)
