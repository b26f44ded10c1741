"""Every mistake in the text of a spec: one class, one code, one explanation with a broken and a mended example."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import SpecError
from attncc.grammar.mistakes_state import BadState as BadState
from attncc.grammar.mistakes_state import LateRow as LateRow
from attncc.grammar.mistakes_state import Misplaced as Misplaced
from attncc.grammar.mistakes_state import NoKeys as NoKeys
from attncc.grammar.mistakes_state import NotAState as NotAState
from attncc.grammar.mistakes_state import UnusedState as UnusedState

# --- E1xx: reading and syntax ---------------------------------------------------------------------------------------


class SyntaxMistake(SpecError):
    """The text does not follow the grammar.

    Broken: `out = softmax(q @ k) @`
    Mended: `out = softmax(q @ k) @ v`
    """

    code: ClassVar[str] = "E100"


class Unreadable(SpecError):
    """The file does not exist, is a directory, or may not be read.

    Broken: `attncc check causl.attn`
    Mended: `attncc check causal.attn`
    """

    code: ClassVar[str] = "E101"


class NotUtf8(SpecError):
    """Specs are UTF-8 text. The message names the first byte that is not.

    Broken: a file saved as Latin-1 or UTF-16
    Mended: the same file saved as UTF-8
    """

    code: ClassVar[str] = "E102"


class EmptySpec(SpecError):
    """There is no `attention` in the text.

    Broken: an empty file, or one that holds only comments and `def`s
    Mended: `attention full: out = softmax(q @ k / sqrt(D)) @ v`
    """

    code: ClassVar[str] = "E103"


class TooDeep(SpecError):
    """Brackets, operators or calls are nested deeper than the compiler follows.

    Broken: `out = ((((( ... )))))`, thousands deep
    Mended: name the parts with `let` or `def`
    """

    code: ClassVar[str] = "E104"


class BadIndent(SpecError):
    """A line starts at a column that opens no block and closes none.

    Broken: a statement indented further than its neighbours, or less without matching a block above
    Mended: all statements of a block start at the same column; an expression goes on inside brackets
    """

    code: ClassVar[str] = "E105"


class TabIndent(SpecError):
    """A line is indented with a tab.

    Broken: a tab before `out = ...`
    Mended: four spaces before `out = ...`
    """

    code: ClassVar[str] = "E106"


class Unbalanced(SpecError):
    """A bracket is opened and never closed, closed and never opened, or closed by another kind.

    Broken: `out = softmax(q @ k @ v`
    Mended: `out = softmax(q @ k) @ v`
    """

    code: ClassVar[str] = "E107"


class BadCharacter(SpecError):
    """A character that means nothing in a spec.

    Broken: `mask = j <= i & i - j < 8`
    Mended: `mask = j <= i and i - j < 8`
    """

    code: ClassVar[str] = "E108"


class MissingColon(SpecError):
    """The line of an `attention` or `for` ends in a colon.

    Broken: `attention full`
    Mended: `attention full:`
    """

    code: ClassVar[str] = "E109"


class ChainedComparison(SpecError):
    """Comparisons do not chain.

    Broken: `mask = 0 <= j <= i`
    Mended: `mask = 0 <= j and j <= i`
    """

    code: ClassVar[str] = "E110"


class EqualsForComparison(SpecError):
    """`=` stands where a comparison is meant.

    Broken: `mask = doc[b, i] = doc[b, j]`
    Mended: `mask = doc[b, i] == doc[b, j]`
    """

    code: ClassVar[str] = "E111"


class ReservedWord(SpecError):
    """A word of the language used as a name.

    Broken: `attention a(of = 2):`
    Mended: `attention a(count = 2):`
    """

    code: ClassVar[str] = "E112"


class BadNumber(SpecError):
    """A number is written as digits, a fraction after at least one digit, and an exponent.

    Broken: `cap = .5`, `cap = 5.`, `cap = 1e999`
    Mended: `cap = 0.5`, `cap = 5.0`, `cap = 1e30`
    """

    code: ClassVar[str] = "E113"


class SeveralSpecs(SpecError):
    """One `attention` is wanted and the text has more.

    Broken: a file with two attentions given to `attncc run`
    Mended: one attention a file
    """

    code: ClassVar[str] = "E114"


# --- E2xx: names ----------------------------------------------------------------------------------------------------


class UnknownName(SpecError):
    """A name that nothing above declares.

    Broken: `out = softmax(scor) @ v`
    Mended: `out = softmax(score) @ v`
    """

    code: ClassVar[str] = "E201"


class UnknownFunction(SpecError):
    """A call of a function that is neither built in nor defined above.

    Broken: `out = softmx(score) @ v`
    Mended: `out = softmax(score) @ v`
    """

    code: ClassVar[str] = "E202"


class Shadowing(SpecError):
    """A new name that already means something: an index, a size, a parameter, a function, q, k, v, a `let`.

    Broken: `attention a(g: real[h]):`   (g is the kv head)
    Mended: `attention a(gate: real[h]):`
    """

    code: ClassVar[str] = "E203"


class PythonKeyword(SpecError):
    """Parameters become Python arguments, so no name may be a keyword of Python.

    Broken: `attention a(global: bool[b, n]):`
    Mended: `attention a(is_global: bool[b, n]):`
    """

    code: ClassVar[str] = "E204"


class RecursiveDef(SpecError):
    """A `def` calls itself, at once or by way of another.

    Broken: `def f(x) = f(x - 1)`
    Mended: a closed formula; specs have no recursion
    """

    code: ClassVar[str] = "E205"


class UsedTooEarly(SpecError):
    """A statement sees what stands above it, and this name is given a meaning further down.

    Broken: `out = softmax(score) @ v` above `score = q @ k`
    Mended: `score = q @ k` above `out = softmax(score) @ v`
    """

    code: ClassVar[str] = "E206"


class NoOut(SpecError):
    """An attention assigns `out`.

    Broken: `attention a: score = q @ k`
    Mended: `attention a: out = softmax(q @ k) @ v`
    """

    code: ClassVar[str] = "E207"


class AssignedTwice(SpecError):
    """`score`, `mask` and `out` are assigned once, and nothing follows from a second value.

    Broken: two lines `out = ...`
    Mended: one line `out = ...`; parts get names with `let`
    """

    code: ClassVar[str] = "E208"


class PlainAssignment(SpecError):
    """A plain `=` is for score, mask, out, q, k, v and states. Everything else is a `let`.

    Broken: `p = softmax(score)`
    Mended: `let p = softmax(score)`
    """

    code: ClassVar[str] = "E209"


class UnusedMask(SpecError):
    """No weight takes the mask: each has a `where` of its own, or there is none below it.

    Broken: `mask = j <= i` with `out = softmax(score where j < i) @ v`
    Mended: drop the mask, or the `where`
    """

    code: ClassVar[str] = "E210"


class UnknownOption(SpecError):
    """A function is given an option it does not have.

    Broken: `softmax(score, sinks = s[h])`
    Mended: `softmax(score, sink = s[h])`
    """

    code: ClassVar[str] = "E211"


class BadName(SpecError):
    """A name has letters, digits and underscores that Python accepts too, and does not start with two underscores.

    Broken: `attention a(__x: real[h]):`
    Mended: `attention a(x: real[h]):`
    """

    code: ClassVar[str] = "E212"


# --- E3xx: indices and types ----------------------------------------------------------------------------------------


class NotBoolean(SpecError):
    """A condition is wanted (a mask, a `where`, the middle of a choice, an operand of and, or, not).

    Broken: `mask = i - j`
    Mended: `mask = i - j < 8`
    """

    code: ClassVar[str] = "E301"


class NotNumber(SpecError):
    """A number is wanted and a condition stands there.

    Broken: `score = q @ k + (j <= i)`
    Mended: `score = q @ k + (1 if j <= i else 0)`
    """

    code: ClassVar[str] = "E302"


class RealIndex(SpecError):
    """A subscript, a size or an operand of `//` and `%` is an integer.

    Broken: `table[(i - j) / 2]`
    Mended: `table[(i - j) // 2]`
    """

    code: ClassVar[str] = "E303"


class FreeIndex(SpecError):
    """A statement's value depends on an index that its left side does not have.

    Broken: `out = softmax(q @ k)`   (one number for each j)
    Mended: `out = softmax(q @ k) @ v`
    """

    code: ClassVar[str] = "E304"


class BadContraction(SpecError):
    """`x @ y` sums over the one index both sides have besides b, h, g and i; here they share none, or several.

    Broken: `slope[h] @ k`
    Mended: `slope[h] * (q @ k)`
    """

    code: ClassVar[str] = "E305"


class ChannelMismatch(SpecError):
    """An elementwise operation meets two different channels.

    Broken: `v - k`
    Mended: `v - k[e]`   (right when D = E)
    """

    code: ClassVar[str] = "E306"


class AxisMismatch(SpecError):
    """A tensor is read at an index of another kind than the axis it was declared with.

    Broken: `slope[b]` with `slope: real[h]`
    Mended: `slope[h]`
    """

    code: ClassVar[str] = "E307"


class TooManySubscripts(SpecError):
    """A tensor has fewer axes than it is given subscripts, or is no tensor.

    Broken: `slope[h, j]` with `slope: real[h]`
    Mended: `slope[h]`
    """

    code: ClassVar[str] = "E308"


class MissingSubscript(SpecError):
    """An axis of query rows, or one without an index of its own, is read at an explicit subscript.

    Broken: `gate * (softmax(score) @ v)` with `gate: real[b, h, m, e]`
    Mended: `gate[b, h, i, e] * (softmax(score) @ v)`
    """

    code: ClassVar[str] = "E309"


class QueryRow(SpecError):
    """An `m` axis holds query rows; it is read at a bare `i` only.

    Broken: `gate[b, h, j]` with `gate: real[b, h, m]`
    Mended: `gate[b, h, i]`
    """

    code: ClassVar[str] = "E310"


class OutOfRange(SpecError):
    """A constant subscript lies outside its axis.

    Broken: `table[32, h]` with `table: real[32, h]`
    Mended: `table[31, h]`
    """

    code: ClassVar[str] = "E311"


class BadCall(SpecError):
    """A function is called with the wrong number of arguments, or without a clause it needs.

    Broken: `sum(p)`
    Mended: `sum(p over j)`
    """

    code: ClassVar[str] = "E312"


class NoSuchDependence(SpecError):
    """`over` names an index that the value does not depend on.

    Broken: `softmax(slope[h])`   (nothing varies with j)
    Mended: `softmax(q @ k)`
    """

    code: ClassVar[str] = "E313"


class BadAxis(SpecError):
    """An axis in brackets is an index in scope, `m`, `n`, a number, or a new name with its size.

    Broken: `doc: int[b, j]`
    Mended: `doc: int[b, n]`
    """

    code: ClassVar[str] = "E314"


class BadType(SpecError):
    """A parameter's type is real, int, bool (with axes in brackets) or offsets.

    Broken: `slope: float[h]`
    Mended: `slope: real[h]`
    """

    code: ClassVar[str] = "E315"


class BadDefault(SpecError):
    """A constant's default is a number or a condition made of numbers.

    Broken: `attention a(w = D // 2):`
    Mended: `attention a(w = 64):`
    """

    code: ClassVar[str] = "E316"


class LetAxes(SpecError):
    """The brackets after a `let` list exactly the indices its right side has.

    Broken: `let c[b, n] = cumsum(logf over n)` with `logf: real[b, h, n]`
    Mended: `let c[b, h, n] = cumsum(logf over n)`
    """

    code: ClassVar[str] = "E317"


class ExtentMismatch(SpecError):
    """Two values meet along one index and their sizes differ.

    Broken: `q[:D // 2] @ k`
    Mended: `q[:D // 2] @ k[:D // 2]`
    """

    code: ClassVar[str] = "E318"


class NotAWeight(SpecError):
    """A function of attention weights is given something else.

    Broken: `dropout(slope[h], 0.1)`
    Mended: `dropout(softmax(score), 0.1)`
    """

    code: ClassVar[str] = "E319"


class NotAValue(SpecError):
    """A function, a set or packed offsets stand where a number is wanted.

    Broken: `softmax(q @ k + abs) @ v`
    Mended: `softmax(abs(q @ k)) @ v`
    """

    code: ClassVar[str] = "E320"


class BadBounds(SpecError):
    """The bounds of a tensor are two numbers, the smaller first.

    Broken: `decay: real[h] in [0, -5]`
    Mended: `decay: real[h] in [-5, 0]`
    """

    code: ClassVar[str] = "E321"


# --- E4xx: understood, not compiled ---------------------------------------------------------------------------------


class NotCompiled(SpecError):
    """The construct is part of the language and this version does not compile it yet.

    Broken: `select S[b, h, i] = top(3) of c by q @ kb`
    Mended: no rewriting helps; the message names the construct and its place
    """

    code: ClassVar[str] = "E401"


class NotARatio(SpecError):
    """`ratio(phi, psi)` needs both parts to be functions of one score.

    Broken: `ratio(exp(q @ k), exp(q[:8] @ k[:8]))`
    Mended: `ratio(exp(score), exp(score) + 1)`
    """

    code: ClassVar[str] = "E402"


class TooMuchInlining(SpecError):
    """Expanding the `def`s of a spec makes more text than the compiler takes.

    Broken: forty `def`s, each calling the one above twice
    Mended: name shared parts with `let`
    """

    code: ClassVar[str] = "E403"
