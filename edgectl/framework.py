"""How a command is declared: every one takes ``--context`` and ``--output`` besides its own options.

``@command(app, "list")`` gives the function a ``Session`` as first argument and adds the two options to its signature.
Both are also accepted before the noun (``edgectl --context store-209 ledger show …``); nearer to the verb wins.
"""

from __future__ import annotations

import functools
import inspect
import typing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgectl.client import CALL_TIMEOUT_S
from edgectl.completing import context_names
from edgectl.output import Output, Page, note, show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from edgectl.contexts import Context
    from edgectl.plain import Plain
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

T = TypeVar("T")

_CONTEXT_HELP = "Whom to ask; `edgectl context list` shows the choice."
# The variable belongs to the root alone: a flag before the noun must win over it.
RootContextOption = Annotated[
    str | None,
    typer.Option("--context", envvar="EDGECTL_CONTEXT", help=_CONTEXT_HELP, autocompletion=context_names),
]
ContextOption = Annotated[str | None, typer.Option("--context", help=_CONTEXT_HELP, autocompletion=context_names)]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most this many.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what it would do; nothing changes.")]
DEFAULT_LIMIT = 1000
PAGE_SIZE = 1000
MAX_PAGES = 1000
OutputOption = Annotated[Output | None, typer.Option("--output", "-o", help="Form of the answer.")]


@dataclass(frozen=True, slots=True)
class Session:
    """What a command has in hand: whom to ask and how to print."""

    context_name: str | None
    output: Output

    @property
    def context(self) -> Context:
        """The context selected; raises NoContextError or BadContextsError."""
        from edgectl.contexts import contexts_path, load_contexts

        return load_contexts(contexts_path()).select(self.context_name)

    def ask(self, question: Callable[[OperatorServiceAsyncStub], Awaitable[T]]) -> T:
        """Put a question to the selected node; raises WavemeshError."""
        from edgectl.client import ask

        return ask(self.context, question)

    def collect(self, request: Message, field: str, limit: int) -> list[dict[str, Any]]:
        """What a list RPC has, page after page, as plain data; at most ``limit``, and a note when there is more.

        ``request`` is a request of OperatorService with pages, ``field`` the list in its answer. Raises WavemeshError.
        """
        from edgectl.plain import plain

        asked: Any = request
        method = type(request).__name__.removesuffix("Request")

        async def all_pages(stub: Any) -> tuple[list[dict[str, Any]], bool]:
            found: list[dict[str, Any]] = []
            for _ in range(MAX_PAGES):
                asked.page_size = min(PAGE_SIZE, limit - len(found))
                answer = await getattr(stub, method)(asked, timeout=CALL_TIMEOUT_S)
                found += map(plain, getattr(answer, field))
                is_last = not answer.next_page_token or answer.next_page_token == asked.page_token
                if is_last or len(found) >= limit:
                    return found[:limit], not is_last
                asked.page_token = answer.next_page_token
            return found, True

        found, is_cut = self.ask(all_pages)
        if is_cut:
            note(f"(the first {len(found)} are shown; --limit N shows more)")
        return found

    def hubs(self) -> Sequence[Session]:
        """Whom to ask what only hubs know: the hub selected or, when control is selected, each hub with a context.

        Raises NoContextError when there is none.
        """
        from edgectl.contexts import NoContextError, contexts_path, load_contexts
        from wavemesh.identity.nodes import Role

        selected = self.context
        if selected.node.role is not Role.CONTROL:
            return [self]
        known = load_contexts(contexts_path()).contexts.values()
        hubs = [replace(self, context_name=one.name) for one in known if one.node.role is Role.STORE_HUB]
        if not hubs:
            msg = f"{selected.name} is control, and there is no context of a hub in {contexts_path()}"
            raise NoContextError(msg)
        return hubs

    def show(self, data: Plain, *parts: Any) -> None:
        """Print the data, or for people the parts (tables and lines)."""
        show(self.output, data, Page(parts))


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function ``(session, **options)`` as a command."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
        session_name, *rest = own.parameters

        @functools.wraps(function)
        def run(ctx: typer.Context, context: str | None, output: Output | None, **options: Any) -> None:
            before: Session = ctx.obj
            function(Session(context or before.context_name, output or before.output), **options)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", keyword, annotation=typer.Context),
            *(own.parameters[key].replace(annotation=hints[key], kind=keyword) for key in rest),
            inspect.Parameter("context", keyword, annotation=ContextOption, default=None),
            inspect.Parameter("output", keyword, annotation=OutputOption, default=None),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by Typer through inspect
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # or inspect would find the function's own signature
        del session_name
        app.command(name)(run)
        return function

    return register
