"""Text to token ids and back."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

# Stands in decoded text for an id that is no character: no parser takes it for part of an answer.
UNKNOWN = "\ufffd"


class Tokenizer(Protocol):
    """What the package needs of a tokenizer.

    vocab_size: ids are below it. pad_id: fills rows, never a stop token. stop_ids: end a completion.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
    """One token a character, id 0 for padding.

    Attributes:
      alphabet: the characters, without repetition.
      stop: the character that ends a completion; it is part of the decoded text.
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

    def decode(self, ids: Sequence[int]) -> str:
        """Characters of the ids; UNKNOWN for padding and for what a larger model vocabulary has beyond the alphabet."""
        return "".join(self.alphabet[i - 1] if 0 < i <= len(self.alphabet) else UNKNOWN for i in ids)
