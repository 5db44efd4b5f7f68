"""Manifests of checkpoints: what each one should hold, by which damage and other runs' checkpoints are found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from polyepo_jax.pods import processes
from polyepo_jax.pods.object_storage import files_below
from polyepo_jax.runs.checkpoints import files
from polyepo_jax.runs.checkpoints.contents import arrays_of
from polyepo_jax.runs.checkpoints.errors import CheckpointError, DamagedError
from polyepo_jax.runs.checkpoints.save_in_progress import SaveInProgress


class Manifests:
    """The manifests of a run directory, `manifests/<step>.json`.

    Args:
      home: the run directory.
    """

    def __init__(self, home: epath.Path):
        self._home = home
        self._path = home / "manifests"

    def make_folder(self) -> None:
        """Makes their folder, where it is not there."""
        self._path.mkdir(exist_ok=True)

    def of(self, step: int) -> epath.Path:
        """The file of a checkpoint's manifest."""
        return self._path / f"{step}.json"

    def read(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint; empty if it has none."""
        path = self.of(step)
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text())
        except ValueError as error:
            raise DamagedError(f"its manifest is no JSON: {error}") from error
        return manifest if "files" in manifest else {"files": manifest}  # as they were before they said more

    def checked(self, step: int) -> dict[str, Any]:
        """As `read`; the checkpoint's files are as it says."""
        manifest = self.read(step)
        self.check_files(step, manifest)
        return manifest

    def check_files(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Raises DamagedError, naming a file, if this process's share of a checkpoint differs from its manifest."""
        there = files_below(self._home / "checkpoints" / str(step))
        for name, (size, crc) in manifest.get("files", {}).items():
            if not files.is_own(name):
                continue
            if name not in there:
                raise DamagedError(f"file {name} is missing")
            actual = files.checksum(there[name])
            if actual[0] != size:
                raise DamagedError(f"file {name} has {actual[0]} bytes instead of {size}")
            if actual[1] != crc:
                raise DamagedError(f"the checksum of file {name} differs")

    def check_arrays(self, step: int, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Raises CheckpointError, naming an array, if a checkpoint holds other arrays than expected."""
        for item, tree in expected.items():
            if item not in manifest:
                continue
            there, wanted = manifest[item], arrays_of(tree)
            for name in [*wanted, *there]:
                if there.get(name) != wanted.get(name):
                    raise CheckpointError(
                        f"checkpoint {step} of {self._home} is of another model or optimizer: its {item}{name} is "
                        f"{there.get(name, 'missing')}, expected {wanted.get(name, 'none')}; use the code and config "
                        "that wrote it, or start again in another run directory"
                    )

    def write(self, save: SaveInProgress, contents: Mapping[str, Any]) -> None:
        """Writes the manifest of a complete checkpoint, of which every process sums up its share of the files."""
        path = self._home / "checkpoints" / str(save.step)
        # Not every file system shows what process 0 has just made to all machines at once: it does the rest.
        there = files_below(path) if processes.is_primary() or path.is_dir() else {}
        sums = save.union({name: files.checksum(path) for name, path in there.items() if files.is_own(name)})
        if sums is None:
            return
        self.make_folder()
        sums |= {name: files.checksum(path) for name, path in there.items() if name not in sums}
        text = json.dumps({**contents, "files": dict(sorted(sums.items()))}, indent=1)
        if files.is_url(self._path):  # where it is there whole or not at all
            self.of(save.step).write_text(text)
            return
        files.write_durably(Path(self.of(save.step)), text)
