"""Runs a printed Triton module under Triton's interpreter, in a process of its own: it must be chosen before import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_SCRIPT = """\
import importlib.util, sys
import numpy as np, torch
folder, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("printed", folder + "/printed.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
data = np.load(folder + "/inputs.npz")
tensors = [torch.from_numpy(data[k]) for k in data.files if k.startswith("t_")]
named = {k[2:]: data[k].item() for k in data.files if k.startswith("c_")}
out = getattr(module, name)(*tensors, **named)
np.savez(folder + "/outputs.npz", *[x.numpy() for x in out])
"""


def run(
    text: str, function: str, inputs: Mapping[str, Array], constants: Mapping[str, float], folder: Path
) -> tuple[Array, ...]:
    """What `function` of the module `text` returns for `inputs` (in order, as CPU tensors) and `constants`."""
    (folder / "printed.py").write_text(text)
    (folder / "run.py").write_text(_SCRIPT)
    data = {f"t_{n}": a for n, a in inputs.items()} | {f"c_{n}": np.asarray(x) for n, x in constants.items()}
    np.savez(folder / "inputs.npz", **data)
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "run.py"), str(folder), function]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "outputs.npz") as out:
        return tuple(out[k] for k in out.files)
