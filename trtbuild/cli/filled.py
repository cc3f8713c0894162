"""One parameter of a command -> several options that make it up, so that commands share them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]


def filled(name: str, options: Mapping[str, tuple[Any, Any]], make: Callable[..., Any]) -> Callable[[Command], Command]:
    """A command with a parameter `name` -> one with `options` instead.

    `options`: annotation and default of each, as typer takes them. `make`: gets their values by name.
    """

    def wrap(command: Command) -> Command:
        signature, hints = inspect.signature(command), typing.get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints.get(p.name)) for p in signature.parameters.values() if p.name != name]
        more = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for option, (kind, default) in options.items()
        ]
        parameters = [*own, *more]

        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> None:
            value = make(**{option: values.pop(option) for option in options})
            command(*args, **{name: value}, **values)

        del run.__wrapped__  # typer would take its signature
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap
