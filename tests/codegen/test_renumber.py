"""Names inside one printed function."""

from __future__ import annotations

import ast

from attncc.codegen.renumber import renumbered

TEXT = """\
    s_8 = mma(q_3, k, use_acc=s_7)  # s_8 in a comment
    w_4_bf16 = s_8.to(x.s_8)
    mask = load(q_3, mask=mask_2)
    for n_5 in range(0, s):
        s_8, w_4_bf16 = s_8 + n_5, (w_4_bf16)
"""


def test_arguments_come_first_and_other_names_stay() -> None:
    text, arguments = renumbered(TEXT, ["q_3", "k", "s_7", "mask_2"], ["s_8", "w_4_bf16", "mask", "n_5"])
    assert arguments == ["q", "k", "s_1", "mask"]
    assert text.splitlines() == [
        "    s_2 = mma(q, k, use_acc=s_1)  # s_8 in a comment",
        "    w_bf16 = s_2.to(x.s_8)",
        "    mask_1 = load(q, mask=mask)",
        "    for n in range(0, s):",
        "        s_2, w_bf16 = s_2 + n, (w_bf16)",
    ]
    ast.parse(f"def f():\n{text}")
