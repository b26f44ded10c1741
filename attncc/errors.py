"""Every mistake a user can make has one class and one code.

    AttnccError
    ├── SpecError            the text of a spec: E1xx reading and syntax, E2xx names, E3xx indices and types, E4xx what
    │                        is understood and not compiled
    ├── CallError            E5xx: the tensors of a call
    ├── BackendError         E6xx: what this machine or backend can't do
    └── InternalError        E9xx: a broken promise between two stages; a bug of ours, never the user's

Classes carry their code and their documentation: the docstring is what `attncc explain CODE` prints.
"""

from __future__ import annotations

from typing import ClassVar

from attncc.diagnostics import Diagnostic, Source, Span


class AttnccError(Exception):
    """Base of all errors raised on purpose."""

    code: ClassVar[str] = "E000"

    def __init__(self, message: str, span: Span | None = None, *, hint: str = "", source: Source | None = None) -> None:
        self.diagnostic = Diagnostic(self.code, message, span, hint)
        self.source = source
        super().__init__(message)

    def __str__(self) -> str:
        return self.diagnostic.render(self.source)


class SpecError(AttnccError):
    """Something is wrong with the text of a spec."""


class CallError(AttnccError):
    """Something is wrong with the tensors or options of a call."""


class BackendError(AttnccError):
    """This machine or backend can't run what was asked for."""


class InternalError(AttnccError):
    """A stage handed on something another stage's verifier refuses. This is a bug in attncc; please report it."""

    code: ClassVar[str] = "E900"
