"""Builds a thing of the learning room from its name and its own parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from luna_cls.errors import InputError

Built = TypeVar("Built")


def build(
    kind: str,
    choices: Mapping[str, Callable[..., Built]],
    name: str,
    parameters: Mapping[str, Any],
    hidden: Container[str] = (),
) -> Built:
    """Calls `choices[name]`, which checks its arguments (pydantic's `validate_call`), with the parameters.

    Args:
        kind: What is built, for messages.
        choices: What there is.
        name: Which of them.
        parameters: Its own parameters.
        hidden: Arguments that are no parameters of the thing itself.

    Raises:
        InputError: If the name or a parameter is unknown, or a value does not fit; lists the right ones.
    """
    if name not in choices:
        raise InputError(f"Unknown {kind} '{name}'. Known: {', '.join(choices)}.")
    known = [
        parameter.name
        for parameter in inspect.signature(choices[name]).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in hidden
    ]
    for parameter in parameters:
        if parameter not in known:
            raise InputError(
                f"The {kind} {name} has no parameter '{parameter}'. Known: {', '.join(known) or 'none'}."
            )
    try:
        return choices[name](**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise InputError(
            f"Parameter {where} of {kind} {name}: {first['msg']}. Received: {first['input']!r}."
        ) from error
    except ValueError as error:
        raise InputError(f"The {kind} {name}: {error}") from error
