"""Builds a thing of the learning room from its name and its own parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError, validate_call

from luna_cls.errors import InputError

Built = TypeVar("Built")


def build(
    kind: str, choices: Mapping[str, Callable[..., Built]], name: str, parameters: Mapping[str, Any]
) -> Built:
    """Calls `choices[name]` with the parameters, each checked against its annotation.

    Raises:
        InputError: If the name or a parameter is unknown, or a value does not fit; lists the right ones.
    """
    if name not in choices:
        raise InputError(f"Unknown {kind} '{name}'. Known: {', '.join(choices)}.")
    known = inspect.signature(choices[name]).parameters
    for parameter in parameters:
        if parameter not in known:
            raise InputError(
                f"The {kind} {name} has no parameter '{parameter}'. Known: {', '.join(known) or 'none'}."
            )
    try:
        return validate_call(choices[name])(**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise InputError(
            f"Parameter {where} of {kind} {name}: {first['msg']}. Received: {first['input']!r}."
        ) from error
