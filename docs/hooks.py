"""Puts into each command's page what its `--help` says: a line `<!-- options: NAME -->` becomes a table.

`<!-- options: luna-cls -->` stands for what comes before a command's name.
"""

import re
from pathlib import Path
from typing import Any

MARKER = re.compile(r"^<!-- options: ([\w-]+) -->$", re.MULTILINE)
PROGRAM = "luna-cls"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with every page."""
    return MARKER.sub(lambda marker: table(marker[1]), markdown)


def on_config(config: Any) -> Any:
    """Pages that are made of files outside `docs` are made anew when those change (`mkdocs serve`)."""
    config.watch += [str(Path(config.config_file_path).parent / name) for name in ("luna_cls", "CHANGELOG.md")]
    return config


def table(name: str) -> str:
    """A command's arguments and options, as a table in Markdown."""
    rows = "\n".join(f"| {' | '.join(row)} |" for row in rows_of(name))
    return f"| option | takes | default | does |\n|---|---|---|---|\n{rows}"


def rows_of(name: str) -> list[list[str]]:
    """What is called how, what it takes, its default and what it does, for all that a command can be told.

    Raises:
        KeyError: If there is no such command.
    """
    from typer.main import get_command

    from luna_cls.cli import app

    group: Any = get_command(app)
    command = group if name == PROGRAM else group.commands[name]
    return [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]


def _row(parameter: Any) -> list[str]:
    is_argument = parameter.param_type_name == "argument"
    called = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    words = [f"`{word}`{' ...' if is_argument and parameter.nargs == -1 else ''}" for word in called]
    return [", ".join(words), _takes(parameter), _default(parameter), _cell(parameter.help or "")]


def _takes(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    kind = parameter.type
    if hasattr(kind, "choices"):
        return " or ".join(f"`{choice}`" for choice in kind.choices)
    names = {"integer": "whole number", "float": "number", "path": "path", "text": "text"}
    takes = names.get(kind.name.removesuffix(" range"), kind.name)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    takes += f" from {low:g}" if low is not None else ""
    return takes + (f" to {high:g}" if high is not None else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "must be given"
    if getattr(parameter, "is_flag", False):
        return "on" if parameter.default else "off"
    if isinstance(parameter.show_default, str):
        return _cell(parameter.show_default)
    return "none" if parameter.default in (None, [], ()) else f"`{parameter.default}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
