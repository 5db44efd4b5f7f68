"""A tokenizer in Hugging Face's format, small enough to be trained while a test runs."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<think>", "</think>")  # tokens of their own, yet text: a decoded response shows them

# As Qwen's: every turn between <|im_start|> and <|im_end|>, and no thoughts where `enable_thinking` is false.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_TEXT = (
    "Find the area of the triangle whose sides are 3, 4 and 5.\n\n",
    "Reason step by step, and put your final answer within \\boxed{}.\n\n",
    "The angle is right, so\n\nthe area is \\frac{3 \\cdot 4}{2} = 6, and\n\nthe answer is \\boxed{6}.\n\n",
    "user assistant system, 10 + 20 = 30, $x^2 - 1 = (x - 1)(x + 1)$.\n\n",
)


def byte_level_bpe(vocab_size: int = 300, special: tuple[str, ...] = SPECIAL) -> tokenizers.Tokenizer:
    """A byte-level BPE with `vocab_size` ids, `special` and ADDED at their end: any text has an encoding."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # Qwen's way of cutting text into words, digits one by one.
    words = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in ADDED])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the text trains {tokenizer.get_vocab_size()} ids, not {vocab_size}: expected 261 to 360")
    return tokenizer


def write_tokenizer(directory: Path | str, vocab_size: int = 300) -> tokenizers.Tokenizer:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json as a base model of Qwen's has them.

    The last five ids are SPECIAL and ADDED. <|endoftext|> ends a text and pads; <|im_end|> ends a turn.

    directory: made if it does not exist. vocab_size: number of ids, 261 to 360.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_bpe(vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    generation = {"eos_token_id": end_of_text, "pad_token_id": end_of_text}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2), "utf-8")
    return tokenizer
