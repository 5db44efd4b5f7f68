"""What is declared, locked, installed and cited agrees."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import polyepo_jax

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def makefile_words(variable: str) -> list[str]:
    (line,) = re.findall(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    return line.split()


def lock_name(accelerator: str, version: str) -> str:
    return f"{accelerator}-py{version.replace('.', '')}.txt"


def direct_dependencies(accelerator: str) -> list[Requirement]:
    """What `make install` asks pip for: the package's own dependencies and those of the extras it names."""
    extras = PROJECT["optional-dependencies"]
    return [
        Requirement(line) for line in (*PROJECT["dependencies"], *extras["test"], *extras["dev"], *extras[accelerator])
    ]


def read_lock(path: Path) -> dict[str, Version]:
    """Pinned versions by canonical name. A constraints file of pip holds nothing but exact pins."""
    pins = {}
    for line in path.read_text("utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", text)
            assert match, f"{path.name}: expected `name==version`, got `{line}`; run `make lock`"
            pins[canonicalize_name(match[1])] = Version(match[2])
    return pins


def test_locks_are_those_of_the_makefile():
    expected = {lock_name(a, v) for a in makefile_words("ACCELERATORS") for v in makefile_words("PYTHONS")}
    assert {path.name for path in LOCKS} == expected


def test_supported_pythons_agree_with_pyproject():
    pythons = makefile_words("PYTHONS")
    prefix = "Programming Language :: Python :: "
    assert [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_pins_every_direct_dependency(path):
    pins = read_lock(path)
    wrong = [
        f"{requirement} is {pins.get(canonicalize_name(requirement.name), 'not pinned')}"
        for requirement in direct_dependencies(path.stem.partition("-")[0])
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), Version("0")))
    ]
    assert not wrong, f"{path.name}: {'; '.join(wrong)}; run `make lock`"


def test_locked_versions_are_installed():
    # The environment of `make install` records its accelerator; any other may hold what it likes.
    stamp = Path(sys.prefix) / "installed-accelerator"
    if not stamp.exists():
        pytest.skip("not in the environment that `make install` makes")
    accelerator = stamp.read_text("utf-8").strip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pins = read_lock(ROOT / "requirements" / lock_name(accelerator, version))
    names = {canonicalize_name(requirement.name) for requirement in direct_dependencies(accelerator)}
    installed = {name: Version(importlib.metadata.version(name)) for name in names}
    assert installed == {name: pins[name] for name in names}


def test_versions_agree():
    (cited,) = re.findall(r"^version: \"?([^\s\"]+)\"?$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert PROJECT["version"] == polyepo_jax.__version__ == cited


def test_changelog_opens_with_this_version():
    headings = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == PROJECT["version"]
