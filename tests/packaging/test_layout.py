"""What stands where: the package list, the top level, names that product code must not hold, sizes of files."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("attncc", "grammar", "codegen")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())

SYSTEMS = """
    bert blockbert longformer bigbird longt5 longnet reformer unlimiformer colt5 minference streamingllm tova fastgen
    moba longheads hyena performer linformer mamba mamba2 retnet rwkv flash flashattention sage sageattention
    flashdecoding kvquant kivi flashinfer natten flexprefill flexattention flex spargeattn magicpig deltanet titans
    lact metala rodimus gemma gemma2 gemma3 llama mistral mixtral qwen deepseek gpt gpt2 gpt_oss t5 alibi minilm falcon
    bloom swin softpick fla xformers cudnn thunderkittens vllm chatglm
""".split()

ADAPTERS = "attncc/runtime/bench/peers"
"""What calls other libraries for a comparison, and has to name them."""

LONGER = {
    "attncc/tile/nodes.py": 610,  # the nodes of the Tile IR: declarations
    "grammar/mistakes.py": 540,  # one class for each mistake, mostly docstrings
}
"""Files that may exceed MOST_LINES, and their own bounds."""
MOST_LINES = 450
MOST_LINES_OF_A_FUNCTION = 70


def _python_files(*folders: str) -> list[Path]:
    return sorted(f for folder in folders for f in (ROOT / folder).rglob("*.py"))


def test_every_package_is_listed() -> None:
    mapped = CONFIG["tool"]["setuptools"]["package-dir"]
    assert mapped == {"attncc": "attncc", "attncc.grammar": "grammar", "attncc.codegen": "codegen"}
    found = set()
    for name, folder in mapped.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(ROOT / folder).parts)))
    assert sorted(CONFIG["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_module_lies_in_a_package() -> None:
    bare = {f.parent.relative_to(ROOT) for f in _python_files(*PRODUCT) if not (f.parent / "__init__.py").is_file()}
    assert bare == set()


def test_no_stranger_at_the_top() -> None:
    allowed = {"attncc", "grammar", "codegen", "tests", "examples", "pyproject.toml", "README.md", "CHANGELOG.md"}
    allowed |= {"LICENSE", "MANIFEST.in"}
    left_by_tools = {"attncc.egg-info", "build", "dist", "shared"}
    visible = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    assert allowed - visible == set()
    assert visible - allowed - left_by_tools == set()


def test_the_version_is_one() -> None:
    tree = ast.parse((ROOT / "attncc" / "__init__.py").read_text())
    (version,) = (
        str(n.value.value)
        for n in tree.body
        if isinstance(n, ast.Assign)
        and ast.unparse(n.targets[0]) == "__version__"
        and isinstance(n.value, ast.Constant)
    )
    assert version == CONFIG["project"]["version"]
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("folder", PRODUCT)
def test_no_published_system_is_named(folder: str) -> None:
    named = re.compile(rf"(?<![a-z])({'|'.join(SYSTEMS)})(?![a-z])", re.IGNORECASE)
    found = []
    for file in sorted((ROOT / folder).rglob("*")):
        if file.suffix not in (".py", ".lark") or file.is_relative_to(ROOT / ADAPTERS):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{file.relative_to(ROOT)}:{number}: {m[0]}" for m in named.finditer(line)]
    assert found == []


def test_files_are_short() -> None:
    folders = (*PRODUCT, "tests", "examples")
    lines = {f.relative_to(ROOT).as_posix(): f.read_text().count("\n") for f in _python_files(*folders)}
    assert {f: n for f, n in lines.items() if n > LONGER.get(f, MOST_LINES)} == {}
    assert {f for f in LONGER if lines.get(f, 0) <= MOST_LINES} == set(), "short by now: take them off the list"


def test_functions_are_short() -> None:
    found = {}
    for file in _python_files(*PRODUCT, "tests", "examples"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    found[f"{file.relative_to(ROOT)}:{node.name}"] = lines
    assert found == {}


def test_modules_and_public_functions_say_what_they_are() -> None:
    bare = []
    for file in _python_files(*PRODUCT):
        tree = ast.parse(file.read_text())
        if not ast.get_docstring(tree):
            bare.append(f"{file.relative_to(ROOT)}")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
                if not ast.get_docstring(node) and not overload:
                    bare.append(f"{file.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert bare == []


def test_dependencies_are_imported_by_someone() -> None:
    imported = set()
    for file in _python_files(*PRODUCT, "tests", "examples"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    by_decree = {"networkx"}  # fixed by the design; the fusion of several programs will use it
    wanted = {re.match(r"[\w-]+", d)[0] for d in CONFIG["project"]["dependencies"]}  # type: ignore[index]
    assert wanted - imported - by_decree == set()


@pytest.mark.parametrize("versions", [("2.11.0", "3.6.0"), ("2.13.0", "3.9.0"), ("3.0.0", "4.0.0")])
def test_ranges_admit_the_oldest_and_the_newest(versions: tuple[str, str]) -> None:
    wanted = {r.name: r for r in map(Requirement, CONFIG["project"]["dependencies"])}
    assert versions[0] in wanted["torch"].specifier
    assert versions[1] in wanted["triton"].specifier
    assert "2.3.5" in wanted["numpy"].specifier, "what Triton 3.6's interpreter needs"
    assert wanted["triton"].marker is not None
    assert not wanted["triton"].marker.evaluate({"platform_system": "Darwin"})


def test_every_environment_variable_is_in_the_table() -> None:
    from attncc.debug import SETTINGS

    found = set()
    for file in _python_files(*PRODUCT):
        found |= set(re.findall(r"\bATTNCC_[A-Z_]+", file.read_text()))
    assert found == {s.name for s in SETTINGS}
