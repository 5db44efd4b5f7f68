"""Models in and out: python -m polyepo_jax.convert hf-import HF_DIR --out DIR | hf-export RUN_DIR [--out HF_DIR]

Both check everything before they write, and write a whole directory or none.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.config import RunConfig
from polyepo_jax.config.meshes import mesh_to_sample
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.model import ModelConfig, merged, save_adapters, save_hf, split
from polyepo_jax.pods import object_storage
from polyepo_jax.runs import model_directory, run_directory
from polyepo_jax.runs.initial import adapters_fingerprint, load_params


@dataclasses.dataclass(frozen=True)
class HfImport:
    """Write a Hugging Face model as one that many hosts read quickly, each its own pieces; `init.model_dir` takes both.

    Attributes:
      source: directory with config.json, safetensors files and a tokenizer.
      out: directory to make.
      dtype: of the parameters; that of the files if not given.
    """

    source: tyro.conf.Positional[Path]
    out: Path
    dtype: Literal["float32", "bfloat16"] | None = None

    def run(self) -> None:
        model_directory.check_new(self.out)
        config, params = model_directory.read(self.source, dtype=self.dtype)
        model_directory.write(self.out, config, params, companions=self.source)
        print(f"{self.out}: {_describe(config)}; start from it with --init.model-dir {self.out}")


@dataclasses.dataclass(frozen=True)
class HfExport:
    """Write the weights of a run, or of an imported model, as a Hugging Face directory that `transformers` loads.

    Of a run that trained adapters (`model.lora`) these alone are written, as a directory that `peft` loads.

    Attributes:
      source: run directory, or one that hf-import made.
      out: directory to make; if not given RUN_DIR/hf/STEP, and of adapters RUN_DIR/adapters/STEP.
      step: checkpoint of the run; the newest if not given.
      dtype: of the files; that of the parameters if not given. Servers want bfloat16.
      companions: Hugging Face directory whose tokenizer and generation files, and further keys of config.json, are
        taken along; the tokenizer's own if not given.
      merged: of a run that trained adapters, write the whole model with the adapters in its weights.
    """

    source: tyro.conf.Positional[Path]
    out: Path | None = None
    step: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    companions: Path | None = None
    merged: bool = False

    def run(self) -> None:
        companions = self.companions
        if companions is not None and not companions.is_dir():
            raise InputError(f"--companions {companions} is no directory")
        if self.out is not None:
            model_directory.check_new(self.out)
        if model_directory.is_imported(self.source):
            if self.step is not None or self.out is None:
                raise InputError(f"{self.source} is an imported model, without steps: give --out and no --step")
            if self.merged:
                raise InputError(f"{self.source} is an imported model, without adapters: leave --merged out")
            config, params = model_directory.read(self.source)
            out, companions = self.out, companions or self.source
        else:
            source = object_storage.working_copy(self.source)
            run = run_directory.read_config(source)
            if self.out is None and object_storage.has_url(source):
                raise InputError(f"{self.source} is no directory of this machine: give --out")
            config, lora = run.model, run.model.lora
            if lora is None and self.merged:
                raise InputError(f"{self.source} is a run without adapters (model.lora): leave --merged out")
            if lora is not None and not self.merged:
                self._export_adapters(source, run)
                return
            tokenizer_dir = getattr(run.task.tokenizer, "directory", None)
            if companions is None and tokenizer_dir is not None:
                companions = Path(tokenizer_dir)
                if not companions.is_dir():
                    raise InputError(f"the run's tokenizer was in {companions}, which is gone: give --companions")
            params, step = load_params(source, run, mesh_to_sample(run), self.step)
            config, params = merged(config, params, self.dtype)
            out = self.out or source / "hf" / str(step)
        _export(out, config, params, self.dtype, companions)

    def _export_adapters(self, source: Path, run: RunConfig) -> None:
        if self.companions is not None:
            raise InputError("--companions go with a whole model: leave them out, or give --merged")
        params, step = load_params(source, run, mesh_to_sample(run), self.step)
        out = self.out or source / "adapters" / str(step)
        adapters, frozen = split(params)
        try:
            save_adapters(
                out,
                run.model,
                adapters,
                dtype=self.dtype,
                base=run.init.model_dir,
                fingerprint=adapters_fingerprint(frozen),
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        print(f"{out}: adapters to the model that {self.source} started from")
        if run.init.model_dir is None:
            print(f"(that is a run: `hf-export {run.init.run_dir}` makes a directory of it, to go with them)")


def _export(out: Path, config: ModelConfig, params: Any, dtype: Any, companions: Path | None) -> None:
    model_directory.check_new(out)
    try:
        save_hf(out, config, params, dtype=dtype, companions=companions)
    except ValueError as error:
        raise InputError(str(error)) from error
    carried = "without a tokenizer: the run's is no Hugging Face one" if companions is None else f"with {companions}'s"
    print(f"{out}: {_describe(config, dtype)}, tokenizer and generation files {carried}")


def _describe(config: ModelConfig, dtype: str | None = None) -> str:
    written = dtype or config.param_dtype
    return f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {written}"


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parse_command_line(HfImport | HfExport, arguments, "python -m polyepo_jax.convert").run()


if __name__ == "__main__":
    run_command(main)
