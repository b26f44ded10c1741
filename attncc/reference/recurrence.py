"""State programs, token by token: every step is evaluated at one i, in order, and the states are carried along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncc.diagnostics import did_you_mean
from attncc.expr.nodes import Expr
from attncc.ir.nodes import Assign, Axis, Keep, Micro, Out, Read, Recurrence, State, Step
from attncc.reference.call import Call
from attncc.reference.evaluate import Evaluator, refuse_astray
from attncc.reference.scope import Scope
from attncc.reference.tensors import Stored
from attncc.reference.values import Value, expanded
from attncc.runtime.mistakes import UnknownTensor, WrongSize


@dataclass
class Tokens:
    """One run over the tokens; `initial` are states given by the call, in place of what the spec starts with."""

    call: Call
    evaluator: Evaluator
    recurrence: Recurrence
    out: Out
    dtype: torch.dtype
    initial: Mapping[str, Tensor]
    rows: list[Tensor] = field(default_factory=list)

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """out [B, H, M, E], and the states after the last token, [B, H, their axes]."""
        sizes = self.call.ranges.sizes
        if sizes["M"] > sizes["N"]:
            raise WrongSize(f"a state program has a token for each query: M = {sizes['M']} is more than {sizes['N']}")
        self._check_initial()
        borders = {s.name: self._borders(s) for s in self.recurrence.states if s.per is not None}
        self._start()
        for i in range(sizes["N"]):
            self._begin(i, borders)
            self._steps(self.recurrence.steps, {"i": self._number(i)})
        states = {s.name: self._state(s.name) for s in self.recurrence.states}
        channels = self.call.tensors["v"].data.shape[3]
        empty = torch.zeros(sizes["B"], sizes["H"], 0, channels, dtype=self.dtype, device=self.call.ranges.device)
        return torch.stack(self.rows, 2) if self.rows else empty, states

    # --- where a token begins ---------------------------------------------------------------------------------------

    def _check_initial(self) -> None:
        known = {s.name: s for s in self.recurrence.states}
        for name, given in self.initial.items():
            if name not in known:
                raise UnknownTensor(f"there is no state {name}", hint=did_you_mean(name, known))
            wanted = tuple(self._extents(known[name].axes).values())
            if tuple(given.shape) != wanted:
                raise WrongSize(f"the state {name} must be of shape {wanted}, not {tuple(given.shape)}")

    def _start(self) -> None:
        for s in self.recurrence.states:
            given = self.initial.get(s.name)
            self._hold(s.name, s.axes, self._init(s, 0) if given is None else given.to(self.dtype))
        for f in self.recurrence.frozen:
            self.call.tensors[f.name] = self.call.tensors[f.state]

    def _init(self, s: State, i: int) -> Tensor:
        return self._array(s.init, s.axes, {"i": self._number(i)})

    def _borders(self, s: State) -> Tensor:
        """Over b, h and the tokens: whether the state starts anew there. Never at token 0, where it starts anyway."""
        assert s.per is not None
        n = self.call.ranges.sizes["N"]
        every = Value(torch.arange(n, device=self.call.ranges.device), ("i",))
        sizes = self._extents(()) | {"i": n}
        key = self.evaluator.value(s.per, self._scope({"i": every}))
        refuse_astray(key)
        key = Value(expanded(key, ("b", "h", "i"), sizes), ("b", "h", "i"))
        changed = torch.zeros_like(key.data, dtype=torch.bool)
        changed[..., 1:] = key.data[..., 1:] != key.data[..., :-1]
        return changed

    def _begin(self, i: int, borders: Mapping[str, Tensor]) -> None:
        """Documents that begin at token i lose the state; then what is frozen is taken anew where it is time."""
        for s in self.recurrence.states:
            if s.name in borders and bool(borders[s.name][..., i].any()):
                fresh = self._init(s, i)
                self._hold(s.name, s.axes, self._mixed(borders[s.name][..., i], fresh, self._state(s.name)))
        for f in self.recurrence.frozen:
            every = self.evaluator.integer(f.every, self._scope({}))
            if i % max(every, 1) == 0:
                self.call.tensors[f.name] = self.call.tensors[f.state]
            elif f.state in borders and bool(borders[f.state][..., i].any()):
                held = self.call.tensors[f.state]
                mixed = self._mixed(borders[f.state][..., i], held.data, self._state(f.name))
                self.call.tensors[f.name] = Stored(mixed, held.kinds)

    def _mixed(self, here: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(here.reshape(here.shape + (1,) * (new.dim() - 2)), new, old)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _steps(self, steps: tuple[Step, ...], place: dict[str, Value]) -> None:
        axes = {s.name: s.axes for s in self.recurrence.states}
        for step in steps:
            match step:
                case Assign(name, _, body):
                    self._hold(name, axes[name], self._array(body, axes[name], place))
                case Keep(name, own, _, body):
                    self._hold(name, own, self._array(body, own, place))
                case Micro(binder, inner):
                    for t in range(self.evaluator.integer(binder.size, self._scope({}))):
                        self._steps(inner, place | {binder.index.name: self._number(t)})
                case Read():
                    self._read(place)

    def _read(self, place: dict[str, Value]) -> None:
        sizes = self.call.ranges.sizes
        if int(place["i"].data) < sizes["N"] - sizes["M"]:
            return
        channels = self.call.tensors["v"].data.shape[3]
        scope = self._scope(place | {"e": self.call.ranges.of("e", channels)})
        value = self.evaluator.value(self.out.body, scope)
        refuse_astray(value)
        self.rows.append(expanded(value, ("b", "h", "e"), self._extents(()) | {"e": channels}).to(self.dtype))

    def _array(self, body: Expr, axes: tuple[Axis, ...], place: dict[str, Value]) -> Tensor:
        """`body` over b, h and the axes."""
        sizes = self._extents(axes)
        own = {a.index: self.call.ranges.of(a.index, sizes[a.index]) for a in axes}
        value = self.evaluator.value(body, self._scope(place | own))
        refuse_astray(value)
        return expanded(value, tuple(sizes), sizes).to(self.dtype)

    def _scope(self, names: dict[str, Value]) -> Scope:
        return self.call.scope(self.dtype).with_names(names)

    def _extents(self, axes: tuple[Axis, ...]) -> dict[str, int]:
        sizes = {"b": self.call.ranges.sizes["B"], "h": self.call.ranges.sizes["H"]}
        return sizes | {a.index: max(0, self.evaluator.integer(a.size, self._scope({}))) for a in axes}

    def _hold(self, name: str, axes: tuple[Axis, ...], data: Tensor) -> None:
        self.call.tensors[name] = Stored(data, ("b", "h", *(a.index for a in axes)))

    def _state(self, name: str) -> Tensor:
        return self.call.tensors[name].data

    def _number(self, value: int) -> Value:
        return Value(torch.tensor(value, device=self.call.ranges.device))
