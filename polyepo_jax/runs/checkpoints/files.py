"""Files and folders of checkpoints, on a disk or in object storage."""

import os
import zlib
from pathlib import Path

import jax
from etils import epath


def children(directory: epath.Path) -> list[epath.Path]:
    """What is in a directory; nothing where there is none, as object storage has no empty ones."""
    return list(directory.iterdir()) if directory.is_dir() else []


def numbered(directory: epath.Path) -> list[int]:
    """Steps with a folder, oldest first."""
    return sorted(int(path.name) for path in children(directory) if path.name.isdecimal())


def is_url(path: epath.Path) -> bool:
    return "://" in str(path)


def is_own(name: str) -> bool:
    """Whether a file is one that this process checks, of all that see it."""
    return zlib.crc32(name.encode()) % jax.process_count() == jax.process_index()


def checksum(path: epath.Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]


def write_durably(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whatever happens to the machine."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
