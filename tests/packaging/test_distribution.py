"""What the sdist and the wheel hold; the wheel is built from the sdist, so nothing can be missing there either."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, checkout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built outside the sources."""
    home = tmp_path_factory.mktemp("built")
    tree = checkout(home / "attncc")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "dist"


def _packaged() -> set[str]:
    """The files of the three source folders under the names they install to."""
    names = set()
    for folder, prefix in (("attncc", "attncc"), ("grammar", "attncc/grammar"), ("codegen", "attncc/codegen")):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".lark", ".md", ".toml") or file.name == "py.typed":
                names.add(f"{prefix}/{file.relative_to(ROOT / folder).as_posix()}")
    return names


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_data(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.name == "attncc-0.1.0-py3-none-any.whl"
    assert {"attncc/grammar/attention.lark", "attncc/py.typed"} <= names
    inside = {n for n in names if ".dist-info/" not in n}
    assert inside == _packaged()


@pytest.mark.slow
def test_the_wheel_names_its_command_and_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = {n.partition(".dist-info/")[2]: n for n in archive.namelist() if ".dist-info/" in n}
        points = archive.read(info["entry_points.txt"]).decode()
    assert "attncc = attncc.__main__:main" in points
    assert "licenses/LICENSE" in info


@pytest.mark.slow
def test_the_sdist_holds_tests_and_examples(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "grammar/attention.lark"}
    wanted |= {"tests/conftest.py", "examples/minilm.py", "examples/softmax/gemma2.attn"}
    assert wanted <= names
    assert not {n for n in names if n.endswith(".pyc")}
