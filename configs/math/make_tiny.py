r"""Makes what qwen3_tiny_warm_start.py starts from, on this machine and from nothing: a model, a tokenizer, problems.

python configs/math/make_tiny.py

Writes below runs/math/: tiny_model/, a directory in Hugging Face's format with a random Qwen3 and a byte-level
tokenizer with the chat template of that family; tiny_train.jsonl and tiny_test.jsonl, sums of two numbers. Always the
same, in about 10 s. What is there already stays, and where it is something else nothing is written.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from polyepo_jax.config import ModelConfig, SFTConfig, load
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.model import init, save_hf

NUM_TRAIN, NUM_TEST = 1000, 128

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=1e4,
    tie_word_embeddings=True,
    max_position_embeddings=256,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def problems() -> list[dict[str, str]]:
    """Distinct sums of two numbers of two digits, below 100, in a random order."""
    pairs = [(a, b) for a in range(10, 90) for b in range(10, 100 - a)]
    order = np.random.default_rng(0).permutation(len(pairs))[: NUM_TRAIN + NUM_TEST]
    return [{"problem": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in (pairs[i] for i in order)]


def tokenizer(text: Sequence[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE with the words of the text and SPECIAL at the end: any other text has an encoding, too."""
    bpe = tokenizers.Tokenizer(models.BPE())
    words = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Qwen's
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(text, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens(list(SPECIAL))
    return bpe


def write_tokenizer(directory: Path, bpe: tokenizers.Tokenizer) -> None:
    """The tokenizer's files, as those of a base model of Qwen's."""
    bpe.save(str(directory / "tokenizer.json"))
    end_of_text = bpe.token_to_id("<|endoftext|>")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"eos_token_id": [bpe.token_to_id("<|im_end|>"), end_of_text], "pad_token_id": end_of_text}
    for name, content in (("tokenizer_config.json", settings), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def make(directory: Path, config: SFTConfig) -> dict[str, Path]:
    """Makes everything in an empty directory; returns where each piece belongs -> where it is."""
    rows = problems()
    made = {}
    for path, part in ((config.task.train, rows[:NUM_TRAIN]), (config.task.test, rows[NUM_TRAIN:])):
        made[path] = directory / Path(path).name
        made[path].write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    companions = directory / "tokenizer"
    companions.mkdir()
    lines = ["user\n", "assistant\n", "7+5=12, 30+12=42. \\boxed{42}", rows[0]["problem"] + config.task.instruction]
    write_tokenizer(companions, tokenizer(lines * 2))  # twice, for what occurs once is not merged
    model_dir = str(config.init.model_dir)
    made[model_dir] = directory / "model"
    params = jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))
    save_hf(made[model_dir], MODEL, params, companions=companions)
    return made


def _content(path: Path) -> dict[str, bytes]:
    """Each file, by its path in the directory; of a file itself, by `.`."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def main(arguments: Sequence[str]) -> None:
    """The command."""
    if arguments:
        raise InputError(f"no arguments are taken, got {' '.join(arguments)}")
    config = load(Path(__file__).with_name("qwen3_tiny_warm_start.py"), SFTConfig)
    with tempfile.TemporaryDirectory() as temporary:
        made = make(Path(temporary), config)
        for target, source in made.items():
            if Path(target).exists() and _content(Path(target)) != _content(source):
                raise InputError(f"{target} exists and holds something else: move it away")
        for target, source in made.items():
            if not Path(target).exists():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)
            print(target)


if __name__ == "__main__":
    run_command(main)
