"""The application: how a command is registered, and what becomes of what it raises."""

from __future__ import annotations

import functools
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from luna_cls import __version__
from luna_cls.cli import console
from luna_cls.cli.options import Json, Quiet, Verbose
from luna_cls.errors import InputError

DONE, WRONG_INPUT, WRONG_USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

# What a command returns: the exit status, and what --json tells of the result.
Answer = tuple[int, Mapping[str, Any] | None]


class _Group(TyperGroup):
    """Commands whose wrong use is told in one line, as everything else that is wrong."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command, and ends the process unless told otherwise."""
        run = functools.partial(
            super().main, args, prog_name, complete_var, False, windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        console.begin(quiet=False, verbose=False, as_json=False)
        try:
            status = run()
        except OSError as error:
            console.complain(f"luna-cls: Standard output cannot be written: {error.strerror or error}.")
            sys.exit(WRONG_INPUT)
        except Exception as error:
            if not hasattr(error, "format_message"):  # Click's, or those of the copy of it in Typer
                raise
            _refuse(_usage(error))
            sys.exit(WRONG_USAGE)
        sys.exit(status if isinstance(status, int) else DONE)


def _refuse(message: str) -> None:
    """Tells what is wrong with a command line, in one plain line whatever manners it asks for."""
    console.begin(quiet=False, verbose=False, as_json=False)
    console.complain(f"luna-cls: {message}")


def _usage(error: Any) -> str:
    """What is wrong with a command line, with the nearest right word, if there is one, and whom to ask."""
    near = sorted(getattr(error, "possibilities", None) or ())
    message = error.message if near else error.format_message()
    message = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    if near:
        message += f". Did you mean {' or '.join(near)}"
    message += "" if message.endswith("?") else "?" if near else "."
    if hasattr(error.__cause__, "errors"):  # pydantic's, which Typer checks values with
        received = repr(error.__cause__.errors()[0]["input"])
        message += "" if received in message else f" Received: {received}."
    context = getattr(error, "ctx", None)
    return f"{message} See {context.command_path if context else 'luna-cls'} --help."


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="For research, not for diagnosis.",
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave; with --verbose, all versions.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Tells lung nodules from look-alikes in chest CT.

    All of it on synthetic scans, in minutes: luna-cls demo. The usual path:

    luna-cls prepare LUNA16 store
    luna-cls train store run
    luna-cls calibrate run
    luna-cls predict run SCANS --out findings
    """
    console.begin(quiet=quiet, verbose=verbose, as_json=as_json)
    if version:
        _print_version(verbose=verbose, as_json=as_json)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()
        raise typer.Exit(WRONG_USAGE)


def _print_version(*, verbose: bool, as_json: bool) -> None:
    from luna_cls.cli.versions import versions

    told = versions() if verbose else {"luna-cls": __version__}
    if as_json:
        console.show(json.dumps(told, indent=2))
        return
    for name, version in told.items():
        console.show(f"{name} {version}")


def _manners(*, quiet: Quiet = False, verbose: Verbose = False, as_json: Json = False) -> None:
    """What every command takes."""


_MANNERS = inspect.signature(_manners, eval_str=True).parameters


def command(group: str, examples: Sequence[str]) -> Callable[[Callable[..., Answer]], Callable[..., None]]:
    """Registers a command under a heading of `luna-cls --help`.

    It takes --quiet, --verbose and --json besides its own options. What a user can cause ends as one line.

    Args:
        group: The heading.
        examples: Command lines for its --help, of at most 78 characters.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, quiet: bool, verbose: bool, as_json: bool, **kwargs: Any) -> None:
            console.adjust(quiet=quiet, verbose=verbose, as_json=as_json)
            if console.is_contradictory():
                _refuse("--quiet says less, --verbose more: give one of them.")
                raise typer.Exit(WRONG_USAGE)
            with console.results_alone_on_stdout():
                status, result = _run(function, args, kwargs)
                if result is not None or status in (DONE, SOME_FAILED):
                    console.finish(function.__name__, status, result)
            raise typer.Exit(status)

        own = inspect.signature(function, eval_str=True)
        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*own.parameters.values(), *_MANNERS.values()], return_annotation=None
        )
        lines = "\n".join(map(escape, examples))
        return app.command(rich_help_panel=group, epilog=f"Examples:\n\n{lines}")(run)

    return register


def _run(function: Callable[..., Answer], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Answer:
    """Calls a command; what a user can cause is one line and a status."""
    if console.is_verbose():
        _tell_versions()
    start = time.monotonic()
    try:
        return function(*args, **kwargs)
    except InputError as error:
        console.say_wrong(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        console.say_wrong(f"{error.strerror or error}{where}. Check the path, its rights and the disk.")
    except MemoryError:
        console.say_wrong(
            "Out of memory. Run it again with fewer --workers or --resamples, whichever it has."
        )
    except KeyboardInterrupt:
        console.complain("Interrupted.")
        return INTERRUPTED, None
    finally:
        if console.is_verbose():
            _tell_cost(function.__name__, time.monotonic() - start)
    return WRONG_INPUT, None


def _tell_versions() -> None:
    from luna_cls.cli.versions import versions

    console.detail(shlex.join(["luna-cls", *sys.argv[1:]]))
    console.detail(", ".join(f"{name} {version}" for name, version in versions().items()))


def _tell_cost(name: str, seconds: float) -> None:
    import resource

    from luna_cls.cli.versions import devices

    found = devices()
    if found is not None:
        console.detail(f"Devices: {', '.join(found)}")
    unit = 1 if sys.platform == "darwin" else 1024
    most_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    console.detail(f"{name} took {seconds:.1f} s, and {most_bytes / 1e9:.1f} GB of memory at most")
