"""Printed text -> a module's names; and its host part alone, which runs without Triton."""

from __future__ import annotations

import ast
import linecache
import threading
from pathlib import Path
from typing import Any

from attncc.debug import setting

Names = dict[str, Any]

parsing = threading.Lock()
"""Held while Python text is parsed: until 3.12, `ast.parse` fails now and then where two threads are inside it."""


def execute(text: str, title: str, given: Names | None = None) -> Names:
    """Runs printed text as a module of its own and returns its names.

    The text is registered under `title` with linecache, which is where tracebacks, `inspect` and Triton's JIT read
    source: no file is needed.
    """
    filename = f"<attncc {title}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    names: Names = {"__name__": f"attncc.printed.{title.replace(' ', '_')}", "__file__": filename}
    names.update(given or {})
    exec(compile(text, filename, "exec"), names)
    return names


def host_part(text: str) -> str:
    """`text` without its Triton kernels, what describes tensors to them, and imports of Triton nothing else needs."""
    with parsing:
        tree = ast.parse(text)
    body = [node for node in tree.body if not _is_of_kernels(node)]
    used = {n.id for node in body for n in ast.walk(node) if isinstance(n, ast.Name)}
    tree.body = [node for node in body if not _imports_only_triton(node, used)]
    return ast.unparse(tree) + "\n"


def _is_of_kernels(node: ast.stmt) -> bool:
    """Whether `node` is a kernel, a layout that kernels name, or the function the runtime has its own of."""
    match node:
        case ast.FunctionDef(name="_descriptor"):
            return True
        case ast.FunctionDef(decorator_list=marks):
            found = {getattr(n, "attr", getattr(n, "id", "")) for d in marks for n in ast.walk(d)}
            return bool(found & {"jit", "builtin"})
        case ast.Assign(value=ast.Call(func=ast.Attribute(attr="constexpr"))):
            return True
        case _:
            return False


def _imports_only_triton(node: ast.stmt, used: set[str]) -> bool:
    match node:
        case ast.Import(names=names):
            pass
        case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "triton":
            return not any((a.asname or a.name) in used for a in names)
        case _:
            return False
    triton = all(a.name.split(".")[0] == "triton" for a in names)
    return triton and not any((a.asname or a.name.split(".")[0]) in used for a in names)


def keep(text: str, title: str) -> None:
    """Writes printed text where ATTNCC_KEEP asks for it."""
    folder = setting("ATTNCC_KEEP")
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{title.replace(' ', '_')}.py").write_text(text)
