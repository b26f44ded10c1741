"""Prints elementwise expressions over tensors: one operation a line, in place wherever an operand is not read again."""

from __future__ import annotations

from attncc.codegen.scalars import CALL, TERNARY, UNARY, literal
from attncc.codegen.torch_exprs import Text, combine
from attncc.codegen.torch_kinds import Lane, Number, Span
from attncc.codegen.torch_state import Item, State, Storage
from attncc.errors import InternalError
from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, walk
from attncc.tile.nodes import Type

IN_PLACE = frozenset(
    "abs neg square exp exp2 expm1 log log2 log1p sqrt rsqrt sin cos tanh erf sigmoid relu".split()
)  # fmt: skip
"""Functions of one argument that torch has an in-place form of, under the same name."""
SPACED = IN_PLACE - {"relu"} | {"add", "sub", "mul", "div", "min", "max", "pow"}
"""Operations that can be told where to write."""
EITHER = {"add": "add_", "mul": "mul_"}
FIRST = {"sub": "sub_", "div": "div_"}


def _negated(e: Expr) -> Expr | None:
    """rewrite: where(c, x, number) --> where(not c, number, x), the form that a fill in place prints."""
    match e:
        case Op("where", (c, x, Const() as number)) if not isinstance(x, Const) and e.sort == "real":
            return op("where", negation(c), number, x)
    return None


def negation(e: Expr) -> Expr:
    """not e, with comparisons of integers turned round."""
    match e:
        case Op("and" | "or" as name, (a, b)):
            return op("or" if name == "and" else "and", negation(a), negation(b))
        case Op("not", (a,)):
            return a
        case Op("lt" | "le" as name, (a, b)) if a.sort == "int" and b.sort == "int":
            return op("le" if name == "lt" else "lt", b, a)
        case Op("eq" | "ne" as name, (a, b)):
            return op("ne" if name == "eq" else "eq", a, b)
        case _:
            return op("not", e)


class Maps:
    """Prints one expression; `state` knows the names in it."""

    def __init__(self, state: State, axes: tuple[str, ...], body: Expr, type: Type | None = None) -> None:
        self.state = state
        self.type = type
        self.axes = axes
        self.body = body = rewrite(body, _negated)
        self.items: dict[Expr, Item] = {}
        self.products: dict[Expr, Op] = {}
        """Those not yet printed: an addition may take them in."""
        self.left: dict[Expr, int] = {body: 1}
        self.held: dict[Expr, Storage] = {}
        """What holds the names in it."""
        for node in walk(body):
            if isinstance(node, Var) and node.name in state.storages:
                self.held[node] = state.storages[node.name]
            if isinstance(node, Op):
                for a in node.args:
                    self.left[a] = self.left.get(a, 0) + 1

    def run(self) -> Item:
        """The value of the whole expression. All leaves come first: several names may stand for one storage."""
        order = list(walk(self.body))
        self.items = {v: self.leaf(v) for v in order if isinstance(v, Var)}
        for node in order:
            match node:
                case Const():
                    self.items[node] = Item(combine_const(node))
                case Var():
                    pass
                case Op():
                    self.operation(node)
                case _:
                    raise InternalError(f"a {type(node).__name__} is no expression of the Tile IR")
        self.settle(self.body)
        return self.items[self.body]

    def leaf(self, v: Var) -> Item:
        kind = self.state.facts.kinds.get(v.name)
        if isinstance(kind, Lane | Span) and v.name not in self.state.storages:
            raise InternalError(f"{v.name} was not printed before it is read")
        if isinstance(kind, Number):
            return Item(Text(self.state.number(v), CALL, False, v.sort))
        return self.state.item(v.name, v.sort)

    # --- operations -------------------------------------------------------------------------------------------------

    def operation(self, node: Op) -> None:
        if node.name == "mul" and node is not self.body and self.waits(node):
            self.products[node] = node
            return
        if node.name in ("add", "sub") and self.fused(node):
            return
        for a in node.args:
            self.settle(a)
        items = [self.items[a] for a in node.args]
        if not any(x.tensor for x in items):
            self.items[node] = Item(combine(node.name, [x.text for x in items], node.sort, self.state.real))
            self.spend(node)
            return
        if node.name == "where" and not items[0].tensor:  # a choice of one tensor would be that tensor, and no new one
            chosen = Text(f"torch.tensor({items[0].text.at(TERNARY)}, device=device)", CALL, True, "bool")
            items[0] = Item(chosen)
        axes, varies = self.union(items)
        dense = all(x.dense for x in items if x.tensor and x.axes == axes and len(axes) > 1)
        if node.sort == "real" and (done := self.in_place(node, items, axes, varies)) is not None:
            self.items[node] = done
            return
        spaced = self.spaced(node, items, axes, varies)
        text = spaced or combine(node.name, [x.aligned(axes) for x in items], node.sort, self.state.real)
        self.spend(node)
        plain = node.sort != "real" and all(x.sort != "real" or not x.tensor for x in items)
        if node is self.body or (plain and self.left[node] == 1):
            self.items[node] = Item(text, axes, varies, None, dense, spaced is not None)
        else:
            self.items[node] = self.keep(text, axes, varies, dense, spaced is not None)

    def spaced(self, node: Op, items: list[Item], axes: tuple[str, ...], varies: frozenset[str]) -> Text | None:
        """The operation written to memory that is kept, where the result is a large tile."""
        if self.type is None or node.sort != "real" or axes != self.axes or node.name not in SPACED:
            return None
        if node.name in EITHER and not items[0].tensor:
            items = items[::-1]
        numbers = [x for x in items if not x.tensor]
        if not items[0].tensor or (numbers and node.name in ("min", "max")):
            return None
        room = self.state.borrow(self.type, varies) if all(x.sort == "real" for x in items) else ""
        if not room:
            return None
        name = {"min": "minimum", "max": "maximum"}.get(node.name, node.name)
        args = ", ".join(x.aligned(axes).at(TERNARY) for x in items)
        sizes = ", ".join(self.state.leading(varies))
        out = f"{room}.unflatten(0, ({sizes}))" if len(self.state.facts.batch) > 1 else room
        return Text(f"torch.{name}({args}, out={out})", CALL, True, "real")

    def keep(self, text: Text, axes: tuple[str, ...], varies: frozenset[str], dense: bool, lent: bool = False) -> Item:
        """A temporary of its own."""
        storage = Storage(self.state.fresh("t"), True, dense=dense, lent=lent)
        self.state.w.line(f"{storage.var} = {text.at(TERNARY)}")
        return Item(Text(storage.var, CALL, True, text.sort), axes, varies, storage, dense)

    def union(self, items: list[Item]) -> tuple[tuple[str, ...], frozenset[str]]:
        names = {a for x in items for a in x.axes}
        varies = frozenset(a for x in items for a in x.varies)
        return tuple(a for a in self.axes if a in names), varies

    def spend(self, node: Op) -> None:
        """The arguments of `node` have been read once more."""
        for a in node.args:
            self.left[a] -= 1

    # --- in place ---------------------------------------------------------------------------------------------------

    def spare(self, e: Expr, item: Item, axes: tuple[str, ...], varies: frozenset[str]) -> bool:
        """Whether the operation at hand may write over `item`: it is as large as the result and read nowhere else."""
        same = item.tensor and item.sort == "real" and item.axes == axes and item.varies == varies
        if not same or item.storage is None or self.left[e] != 1:
            return False
        if any(o is not e and x.storage is item.storage and self.left[o] > 0 for o, x in self.items.items()):
            return False
        if any(o is not e and x is item.storage and self.left[o] > 0 for o, x in self.held.items()):
            return False  # another name of the same tensor, read further on
        return item.storage.owned if not item.storage.names else self.state.free(item.storage)

    def in_place(self, node: Op, items: list[Item], axes: tuple[str, ...], varies: frozenset[str]) -> Item | None:
        spare = [self.spare(a, x, axes, varies) for a, x in zip(node.args, items, strict=True)]
        if not any(spare) or (len(node.args) > 1 and node.args[0] is node.args[1]):
            return None
        at = spare.index(True)
        text = self.overwritten(node.name, items, at, axes)
        if text is None:
            return None
        self.spend(node)
        self.state.w.chained(items[at].text.text, text)
        return Item(items[at].text, axes, varies, items[at].storage, items[at].dense)

    def overwritten(self, name: str, items: list[Item], at: int, axes: tuple[str, ...]) -> str | None:
        """The call that leaves the result in items[at], without the variable in front."""
        if name in IN_PLACE:
            return f"{name}_()"
        if name == "recip":
            return "reciprocal_()"
        if name == "where":
            return self.masked(items, at, axes)
        if len(items) != 2:
            return None
        other = items[1 - at]
        text = other.aligned(axes).at(TERNARY)
        if name in EITHER:
            return f"{EITHER[name]}({text})"
        if name in FIRST and at == 0:
            return f"{FIRST[name]}({text})"
        if name in ("min", "max") and not other.tensor:
            return f"clamp_({'max' if name == 'min' else 'min'}={text})"
        if name == "sub":
            return f"neg_().add_({text})"
        if name == "div":
            return f"reciprocal_().mul_({text})"
        return None

    def masked(self, items: list[Item], at: int, axes: tuple[str, ...]) -> str | None:
        """where(c, x, number) and where(c, number, x)."""
        if at == 0 or items[3 - at].tensor or not items[0].tensor:
            return None
        c = items[0]
        if at == 1:
            c = Item(combine("not", [c.text], "bool", self.state.real), c.axes, c.varies)
        return f"masked_fill_({c.aligned(axes).at(TERNARY)}, {items[3 - at].text.at(TERNARY)})"

    # --- products taken in by sums ----------------------------------------------------------------------------------

    def waits(self, node: Op) -> bool:
        """Whether a product is left to the one sum that reads it: neither factor can hold it."""
        if self.left[node] != 1:
            return False
        readers = [n for n in walk(self.body) if isinstance(n, Op) and node in n.args]
        if len(readers) != 1 or readers[0].name not in ("add", "sub"):
            return False
        if any(a in self.products for a in node.args):
            return False
        items = [self.items[a] for a in node.args]
        if node.sort != "real" or not any(x.tensor for x in items):
            return False
        axes, varies = self.union(items)
        return not any(self.spare(a, x, axes, varies) for a, x in zip(node.args, items, strict=True))

    def fused(self, node: Op) -> bool:
        """x + a * b in one pass over x, which is overwritten."""
        for at, x in enumerate(node.args):
            product = node.args[1 - at]
            if product not in self.products or x in self.products or (node.name == "sub" and at == 1):
                continue
            a, b = (self.items[e] for e in self.products[product].args)
            item = self.items[x]
            axes, varies = self.union([item, a, b])
            if not self.spare(x, item, axes, varies):
                continue
            self.state.w.chained(item.text.text, _taken(node.name, a, b, axes))
            self.spend(node)
            self.spend(self.products.pop(product))
            self.items[node] = Item(item.text, axes, varies, item.storage, item.dense)
            return True
        return False

    def settle(self, e: Expr) -> None:
        """A product that waits is needed as a value."""
        product = self.products.pop(e, None)
        if product is not None:
            items = [self.items[a] for a in product.args]
            axes, varies = self.union(items)
            text = combine("mul", [x.aligned(axes) for x in items], e.sort, self.state.real)
            self.spend(product)
            self.items[e] = self.keep(text, axes, varies, all(x.dense for x in items if x.axes == axes))


def _taken(name: str, a: Item, b: Item, axes: tuple[str, ...]) -> str:
    """The call on x that adds or subtracts a * b."""
    if a.tensor and b.tensor:
        sign = "" if name == "add" else ", value=-1"
        return f"addcmul_({a.aligned(axes).at(TERNARY)}, {b.aligned(axes).at(TERNARY)}{sign})"
    tensor, number = (a, b) if a.tensor else (b, a)
    return f"{name}_({tensor.aligned(axes).at(TERNARY)}, alpha={number.text.at(TERNARY)})"


def combine_const(c: Const) -> Text:
    """A literal as text."""
    text = literal(c.value)
    return Text(text, UNARY if text.startswith("-") else CALL, False, c.sort)
