"""Who may import whom: walked over the sources, imports inside functions and under TYPE_CHECKING told apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"attncc": "attncc", "grammar": "attncc.grammar", "codegen": "attncc.codegen"}
BASE = {"diagnostics", "errors", "debug"}

PARTS = {
    "diagnostics": set[str](),
    "errors": {"diagnostics"},
    "debug": set[str](),
    "expr": BASE,
    "ir": BASE | {"expr"},
    "grammar": BASE | {"expr", "ir"},
    "passes": BASE | {"expr", "ir"},
    "tile": BASE | {"expr"},
    "schedule": BASE | {"expr", "ir", "passes", "tile"},
    "codegen": BASE | {"expr", "tile"},
    "reference": BASE | {"expr", "ir", "runtime", "driver"},
    "runtime": BASE | {"expr", "ir", "tile", "schedule", "reference", "driver"},
    "driver": BASE | {"expr", "ir", "grammar", "passes", "schedule", "tile", "codegen"},
}
"""What each part imports of the others when it runs. The reference knows no pass, schedule or printer; the printers
know no attention; only the driver sees every stage. The command line stands above all and imports lazily."""

STRANGERS = {
    "torch": {"runtime", "reference"},
    "triton": {"runtime"},
    "lark": {"grammar"},
    "sympy": {"passes"},
    "networkx": {"passes"},
    "numpy": {"tile", "runtime", "reference"},
}
LAZY_STRANGERS = {"triton", "sympy", "networkx"}
LIGHT = {"expr", "ir", "tile"}


@dataclass(frozen=True)
class Import:
    """One import: the part it stands in, the module it names, whether inside a function, whether for types only."""

    file: str
    line: int
    part: str
    module: str
    lazy: bool
    types: bool

    @property
    def top(self) -> str:
        """The distribution: torch, attncc."""
        return self.module.partition(".")[0]

    @property
    def target(self) -> str:
        """The part of attncc it names."""
        return self.module.partition(".")[2].partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.part} imports {self.module}"


def _walk(node: ast.AST, lazy: bool, types: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy, types
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from _walk(child, inside, guarded)


def _imports() -> Iterator[Import]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            part = folder if folder != "attncc" else file.relative_to(ROOT / "attncc").parts[0].removesuffix(".py")
            for node, lazy, types in _walk(ast.parse(file.read_text(encoding="utf-8")), False, False):
                if isinstance(node, ast.Import):
                    modules = [a.name for a in node.names]
                else:
                    assert node.level == 0, f"{file}: relative import"
                    assert node.module is not None
                    modules = [node.module]
                    if node.module == "attncc":
                        modules = [f"attncc.{a.name}" for a in node.names]
                for module in modules:
                    yield Import(str(file.relative_to(ROOT)), node.lineno, part, module, lazy, types)


IMPORTS = tuple(_imports())


def test_parts_import_only_what_stands_below_them() -> None:
    wrong = []
    for found in IMPORTS:
        if found.top != "attncc" or found.types or found.part not in PARTS:
            continue
        if found.target != found.part and found.target not in PARTS[found.part]:
            wrong.append(str(found))
    assert wrong == []


def test_every_part_is_in_the_table() -> None:
    above = {p for p in {i.part for i in IMPORTS} - set(PARTS) if not p.startswith(("cli", "__"))}
    assert above == set()


def test_strangers_are_imported_where_they_belong() -> None:
    wrong = []
    for found in IMPORTS:
        homes = STRANGERS.get(found.top)
        if homes is None or found.types:
            continue
        from_command_line = found.top == "torch" and found.part.startswith("cli") and found.lazy
        if found.part not in homes and not from_command_line:
            wrong.append(str(found))
        elif found.top in LAZY_STRANGERS and not found.lazy:
            wrong.append(f"{found}, not lazily")
    assert wrong == []


@pytest.mark.parametrize("part", sorted(LIGHT))
def test_the_irs_load_nothing_heavy(part: str) -> None:
    loaded = _loaded_by(f"import pkgutil, importlib, attncc.{part} as p\n[importlib.import_module(m.name) for m in "
                        f"pkgutil.iter_modules(p.__path__, p.__name__ + '.')]")  # fmt: skip
    assert loaded & {"torch", "triton", "lark", "sympy", "networkx"} == set()


def test_importing_attncc_loads_nothing_heavy() -> None:
    loaded = _loaded_by("import attncc; attncc.compile; attncc.SpecError")
    assert loaded & {"torch", "triton", "lark", "sympy", "networkx", "numpy", "click", "rich"} == set()


def test_checking_a_spec_loads_no_torch() -> None:
    spec = str(ROOT / "examples" / "softmax" / "gemma2.attn")
    loaded = _loaded_by(f"from attncc.cli import commands\ncommands(['check', {spec!r}], standalone_mode=False)")
    assert "lark" in loaded
    assert loaded & {"torch", "triton", "sympy", "networkx", "numpy"} == set()


def test_printing_loads_no_torch_and_no_triton() -> None:
    loaded = _loaded_by("import attncc.codegen.triton_printer, attncc.codegen.torch_printer, attncc.driver")
    assert loaded & {"torch", "triton", "sympy", "networkx"} == set()


def _loaded_by(code: str) -> set[str]:
    """The top-level modules that `code` leaves loaded in a fresh Python."""
    leave = "\nimport sys\nprint('LOADED', *sorted({m.partition('.')[0] for m in sys.modules}))"
    code = f"try:\n    {code.replace(chr(10), chr(10) + '    ')}\nexcept SystemExit:\n    pass{leave}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("LOADED"))
    return set(line.split()[1:])
