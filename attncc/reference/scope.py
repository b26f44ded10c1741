"""What names mean while an expression is evaluated: index ranges, sizes, constants, and which elements will be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from attncc.expr.nodes import Expr, Sort
from attncc.reference.values import Value, both


def numbers(extent: int, name: str, device: torch.device, first: int = 0) -> Value:
    """first, first + 1, ... along the axis `name`."""
    return Value(torch.arange(first, first + extent, device=device), (name,))


def scalar(value: int | float | bool, sort: Sort, device: torch.device) -> Value:
    """A constant without axes; reals are float64, which never widens a tensor they meet."""
    kinds = {"bool": torch.bool, "int": torch.int64, "real": torch.float64}
    return Value(torch.tensor(value, dtype=kinds[sort], device=device))


@dataclass(frozen=True)
class Scope:
    """`live` tells which elements of the expression are used (None: all); `mask` that a bool expression decides that.

    In a mask a comparison that reads out of range is false. Results are remembered per scope, by node.
    """

    names: dict[str, Value]
    dtype: torch.dtype
    live: Value | None = None
    mask: bool = False
    memo: dict[Expr, Value] = field(default_factory=dict)

    def with_names(self, new: dict[str, Value]) -> Scope:
        """With more names, or the same scope where nothing changes."""
        return self if all(self.names.get(k) is v for k, v in new.items()) else self._fresh(names={**self.names, **new})

    def under(self, condition: Value) -> Scope:
        """Where only elements at which `condition` holds are used."""
        return self._fresh(live=both(self.live, condition) if self.live else condition, mask=False)

    def as_mask(self) -> Scope:
        """For a bool expression that decides which elements exist."""
        return self._fresh(mask=True, live=None)

    def as_values(self) -> Scope:
        """For operands of a contraction: every element counts."""
        return self if self.live is None and not self.mask else self._fresh(live=None, mask=False)

    def anew(self) -> Scope:
        """The same, with nothing remembered."""
        return self._fresh()

    def exact(self) -> Scope:
        """Real arithmetic on integers alone, in float64 whatever the tensors are."""
        return self if self.dtype == torch.float64 else self._fresh(dtype=torch.float64)

    def _fresh(self, **changes: object) -> Scope:
        return replace(self, memo={}, **changes)  # type: ignore[arg-type]


class Ranges:
    """The values of every index variable, one Value per (index, extent) so that equal bindings are the same object."""

    def __init__(self, sizes: dict[str, int], device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self._made: dict[tuple[str, int], Value] = {}

    def of(self, index: str, extent: int) -> Value:
        """0 .. extent-1 along `index`; for i the positions of the M query rows in key coordinates."""
        key = (index, extent)
        if key not in self._made:
            first = self.sizes["N"] - self.sizes["M"] if index == "i" else 0
            self._made[key] = numbers(max(extent, 0), index, self.device, first)
        return self._made[key]

    def base(self, constants: Iterable[tuple[str, Value]]) -> dict[str, Value]:
        """The names every expression sees: sizes, constants, and the indices that need no declaration."""
        s = self.sizes
        names = {name: scalar(size, "int", self.device) for name, size in s.items()}
        names.update(constants)
        extents = {"b": "B", "h": "H", "i": "M", "j": "N", "n": "N", "d": "D", "e": "E"}
        names.update({index: self.of(index, s[size]) for index, size in extents.items()})
        names["g"] = self.group_of_head()
        return names

    def group_of_head(self) -> Value:
        """g as a function of h."""
        return self._once(("g of h", 0), lambda: Value(self.of("h", self.sizes["H"]).data // self._share(), ("h",)))

    def _share(self) -> int:
        return self.sizes["H"] // max(self.sizes["G"], 1) or 1

    def _once(self, key: tuple[str, int], make: Callable[[], Value]) -> Value:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
