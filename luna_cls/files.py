"""Files appear whole or not at all, and nothing is overwritten unasked."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

import pandas as pd

from luna_cls.errors import InputError

POINT_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")  # LUNA16's own names; mm, LPS
COORDINATES = list(POINT_COLUMNS[1:])
PREDICTION = "prediction.json"  # beside findings: which models and calibration made them

MOST_JSON_BYTES = 1 << 23
_DEEPEST_JSON = 64

_WORDS = {"seriesuid": "be a series UID", "path": "be a path"}  # columns that hold text

# What the numbers of a column are: from, to, in words.
_RANGES = {
    "class": (0, 1, "be 0 or 1"),
    "probability": (0, 1, "be from 0 to 1 (of a logit: 1 / (1 + exp(-logit)))"),
}


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` once the block succeeds.

    The bytes are on the disk before the rename, so a power cut leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name may be no text


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, keys as given, NaN and infinity as null, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n"


def read_json(content: bytes, what: str) -> dict[str, Any]:
    """Reads a JSON object that others have written.

    Args:
        content: The text.
        what: Where it is from, for messages.

    Raises:
        InputError: If it is something else, too large, or nested too deeply.
    """
    if len(content) > MOST_JSON_BYTES:
        raise InputError(f"{what} is refused: it has more than {MOST_JSON_BYTES:,} bytes.")
    depth = 0
    try:
        value = json.loads(content)
    except RecursionError:
        value, depth = {}, _DEEPEST_JSON
    except ValueError as error:
        raise InputError(f"{what} is no JSON: {error}.") from error
    level = [value]
    while level:
        depth += 1
        inner = [entry for entry in level if isinstance(entry, dict | list)]
        level = [child for entry in inner for child in (entry.values() if isinstance(entry, dict) else entry)]
    if depth > _DEEPEST_JSON:
        raise InputError(f"{what} is refused: it is nested more than {_DEEPEST_JSON} deep.")
    if not isinstance(value, dict):
        raise InputError(f"{what} holds no JSON object. Received: a {type(value).__name__}.")
    return value


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes `table` so that every float64 reads back as the same float64."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_csv(path: Path, columns: tuple[str, ...], what: str, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Reads a CSV of scans and points; the columns named must be there and hold what they say.

    Args:
        path: The CSV file, with a header line.
        columns: Columns that must be present. `seriesuid` and `path` are text, `class` is 0 or 1,
            `probability` from 0 to 1, every other one finite numbers.
        what: What the file holds, for the message ("candidates").
        optional: Columns checked in the same way where they are present.

    Returns:
        The table, further columns included; an empty table keeps its columns.

    Raises:
        InputError: If the file is missing, no CSV, lacks a column, or a cell is no finite number.
    """
    if not path.is_file():
        raise InputError(f"No {what} file at {path}. Give the path of a CSV with {','.join(columns)}.")
    try:
        # Blank lines are kept at first, so that the index tells the line.
        table = pd.read_csv(path, dtype=dict.fromkeys(_WORDS, str), skip_blank_lines=False)
    except UnicodeError as error:
        raise InputError(f"{path} is no text in UTF-8. A CSV of {what} is; save it as such.") from error
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty. A CSV of {what} has {','.join(columns)}.") from error
    except ValueError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as a CSV of {what}: {reason}.") from error
    other = next((sign for sign in (";", "\t") if sign in "".join(map(str, table.columns))), None)
    if other:
        name = "semicolons" if other == ";" else "tabs"
        raise InputError(f"{path}: its cells are separated by {name}. Save it with commas.")
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(
            f"{path}: rows have more cells than the header line has columns. A CSV of {what} has "
            f"{','.join(columns)}."
        )
    table = table.dropna(how="all")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            f"{path} lacks the column {missing[0]}. Received: {','.join(map(str, table.columns))}. "
            f"A CSV of {what} has {','.join(columns)}."
        )
    for name in (*columns, *(name for name in optional if name in table.columns)):
        values = table[name]
        if name in _WORDS:
            bad = values.isna() | (values.astype("string").str.strip() == "")
            rule = _WORDS[name]
        else:
            table[name] = numbers = pd.to_numeric(values, errors="coerce")
            low, high, rule = _RANGES.get(name, (-1e12, 1e12, "be a finite number"))
            bad = ~numbers.between(low, high)
            if name == "class":
                bad |= numbers % 1 != 0
        if bad.any():
            row = int(bad.to_numpy().argmax())
            received = " ".join(str(values.iloc[row]).split())[:80]
            raise InputError(
                f"{path}, line {table.index[row] + 2}: {name} must {rule}. Received: {received}."
            )
    return table.reset_index(drop=True)


def read_series_uids(path: Path) -> list[str]:
    """Reads a list of scans, one series UID a line; a header line `seriesuid` is passed over.

    Raises:
        InputError: If the file is missing, empty, no text, or lists a scan twice.
    """
    if not path.is_file():
        raise InputError(f"No list of scans at {path}. Give a file with one series UID a line.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # "sig": spreadsheets begin files with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error}. Give one series UID a line.") from error
    lines = (line.strip().strip("\"'") for line in text.splitlines())
    uids = [uid for uid in lines if uid not in ("", "seriesuid")]
    if not uids:
        raise InputError(f"{path} lists no scan. Give one series UID a line.")
    cells = next((uid for uid in uids if "," in uid or ";" in uid), None)
    if cells:
        raise InputError(
            f"{path} has lines of more than a series UID. Received: {cells[:80]}. Give one a line."
        )
    uid, times = Counter(uids).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path} lists {uid} {times} times. List every scan once.")
    return uids


def encodable(name: str) -> str:
    """A name with bytes that are no UTF-8 spelled out, so that it can be written."""
    return name.encode(errors="backslashreplace").decode()


def files_below(folder: Path, leave_out: str = "") -> list[Path]:
    """All files in and below a folder, sorted; links to folders are followed, each folder is entered once.

    Args:
        folder: Where to look.
        leave_out: Folders that hold a file of this name are passed over.

    Raises:
        InputError: If a folder may not be entered.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be searched: {error.strerror}. Mend its rights."
        ) from error

    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        true = os.path.realpath(place)
        if true in seen or (leave_out and leave_out in names):
            folders.clear()
            continue
        seen.add(true)
        found += [path for path in (Path(place, name) for name in names) if path.is_file()]
    return sorted(found)


def sha256(*paths: Path) -> str:
    """The SHA-256 of the bytes of some files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def locked(file: IO[bytes], start: int, stop: int) -> Iterator[None]:
    """Keeps others who ask for it, on this machine or another, out of some bytes of a file in the block."""
    fcntl.lockf(file, fcntl.LOCK_EX, stop - start, start)
    try:
        yield
    finally:
        file.flush()
        fcntl.lockf(file, fcntl.LOCK_UN, stop - start, start)


@contextmanager
def one_at_a_time(handle: int, taken: str) -> Iterator[None]:
    """Keeps every other process that asks for it out of an open file or folder in the block.

    Args:
        handle: Its descriptor.
        taken: What to say if another process is in.

    Raises:
        InputError: If so.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(taken) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
            raise  # without locks on that disk there is no telling
    yield


@contextmanager
def alone_in(folder: Path, taken: str) -> Iterator[None]:
    """Keeps every other process that asks for it out of a folder in the block.

    Args:
        folder: It is there.
        taken: What to say if another process is in.

    Raises:
        InputError: If so.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with one_at_a_time(handle, taken):
            yield
    finally:
        os.close(handle)


def require_new(path: Path, *, force: bool, sign: str, inputs: Iterable[Path] = ()) -> None:
    """Refuses an output folder that exists; with `force`, one that is no earlier output of its kind.

    Nothing is deleted here: `clear` does that, once all inputs are known to be good.

    Args:
        path: The folder to be made.
        force: Whether an earlier output may be replaced.
        sign: A file that every output of this kind has from its beginning.
        inputs: What the output is made from; none of it may lie in `path`.

    Raises:
        InputError: If `path` must not be replaced.
    """
    if not path.exists():
        ancestor = next(parent for parent in path.resolve().parents if parent.exists())
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
            raise InputError(f"{path} cannot be made: {ancestor} is no folder that can be written to.")
        return
    if not force:
        raise InputError(f"{path} exists already. Choose another path, or pass --force to replace it.")
    if not is_empty(path) and not (path / sign).is_file():
        raise InputError(
            f"{path} is not replaced, even by --force: it has no {sign}, so it is no earlier output of this "
            "command. Choose another path."
        )
    for given in inputs:
        if given.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{path} is not replaced: the input {given} lies in it. Choose another path.")


def is_empty(path: Path) -> bool:
    """Whether `path` is a folder with nothing in it but what a killed process had half-written."""
    return path.is_dir() and all(fnmatch(entry.name, ".*.partial*") for entry in path.iterdir())


@contextmanager
def kept_until_done(path: Path, is_of_use: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Puts an earlier folder at `path` aside: deleted once the block succeeds, back in place if it fails.

    Args:
        path: The folder.
        is_of_use: Whether what a failed block leaves is of more use than the earlier folder.
    """
    kept = aside(path)
    clear(kept)
    if not path.exists():
        yield
        return
    path.rename(kept)
    try:
        yield
    except BaseException:
        if is_of_use():
            clear(kept)
            raise
        clear(path)
        kept.rename(path)
        raise
    clear(kept)


def aside(path: Path) -> Path:
    """Where `kept_until_done` puts an earlier folder."""
    return path.with_name(f".{path.name}.replaced")


def clear(path: Path) -> None:
    """Deletes a folder that `require_new` let pass, if it is there."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`; it takes that place once the block succeeds, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
    temporary.mkdir()
    try:
        yield temporary
        clear(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
