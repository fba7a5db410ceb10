"""Puts into each command's page what its `--help` says: a line `<!-- options: NAME -->` becomes a table.

`<!-- options: luna-cls -->` stands for what comes before a command's name.
"""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command
from typer.utils import get_params_from_function

from luna_cls.cli import app

MARKER = re.compile(r"^<!-- options: ([\w-]+) -->$", re.MULTILINE)
PROGRAM = "luna-cls"
KINDS = {bool: "", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with every page."""
    return MARKER.sub(lambda marker: table(marker[1]), markdown)


def on_config(config: Any) -> Any:
    """Pages that are made of files outside `docs` are made anew when those change (`mkdocs serve`)."""
    root = Path(config.config_file_path).parent
    config.watch += [str(root / name) for name in ("luna_cls", "data", "CHANGELOG.md")]
    return config


def table(name: str) -> str:
    """A command's arguments and options, as a table in Markdown."""
    rows = "\n".join(f"| {' | '.join(row)} |" for row in rows_of(name))
    return f"| option | does | takes | default |\n|---|---|---|---|\n{rows}"


def rows_of(name: str) -> list[list[str]]:
    """How it is called, what it does, what it takes and its default, of all that a command can be told.

    Raises:
        KeyError: If there is no such command.
    """
    callbacks = {entry.name or entry.callback.__name__: entry.callback for entry in app.registered_commands}
    group: Any = get_command(app)
    command, callback = group, app.registered_callback.callback
    if name != PROGRAM:
        command, callback = group.commands[name], callbacks[name]
    annotations = {key: meta.annotation for key, meta in get_params_from_function(callback).items()}
    return [
        _row(parameter, annotations.get(parameter.name, bool))  # what typer adds of itself are flags
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
    ]


def _row(parameter: Any, annotation: Any) -> list[str]:
    is_argument = parameter.param_type_name == "argument"
    called = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    words = ", ".join(f"`{word}`" for word in called) + (" ..." if parameter.nargs == -1 else "")
    kind = _kind(annotation)
    return [words, _cell(_help(parameter)), _takes(parameter, kind), _default(parameter, kind)]


def _help(parameter: Any) -> str:
    """Its help, without what the column before says already."""
    return re.sub(r"; may be repeated(?=\.)", "", parameter.help or "")


def _kind(annotation: Any) -> Any:
    """What one value is: `list[Path] | None` holds paths."""
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) is Literal or not inner:
        return annotation
    return _kind(inner[0])


def _takes(parameter: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    takes = KINDS[kind] + (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high else "")
    return f"{takes}; may be repeated" if getattr(parameter, "multiple", False) else takes


def _default(parameter: Any, kind: Any) -> str:
    if parameter.required:
        return "must be given"
    if kind is bool:
        return "on" if parameter.default else "off"
    if isinstance(parameter.show_default, str):
        return _cell(parameter.show_default)
    return "none" if parameter.default in (None, [], ()) else f"`{parameter.default}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
