"""A `.keras` file, looked through before Keras opens it. Nothing here loads Keras.

Keras' safe mode runs no code from a file: it refuses lambdas, classes by module path, pickles, and links from
HDF5 to other files. It does allow what has no place in a model of cubes: layers that read other files,
archives with more in them than a model, and arrays of up to 4 GiB that hardly a byte of the file stands for.
That is refused here, and so is what would be misread: weights that are not finite, files of a newer Keras.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from luna_cls.errors import InputError
from luna_cls.files import MOST_JSON_BYTES, read_json

_FOLDER = Path(__file__).parents[1] / "pretrained"
# The models that come with the package, by name. Each lies in a bundle (`luna_cls.inference.bundle`).
PRETRAINED = {"phantom": _FOLDER / "phantom" / "model.keras"}

MOST_MODEL_BYTES = 1 << 30
_MOST_LINKS = 10_000  # of the weights, groups and all; a hundred layers have about a thousand
# As Keras numbers its releases, `3.16.0.dev2026010203` and all: it ends in a command that users copy.
KERAS_VERSION = r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,2}(?:(?:a|b|rc|\.dev|\.post)[0-9]{1,12})?"
_MOST_PACKED = (
    100  # of a large file, as in Keras: weights hardly get smaller, and Keras leaves them as they are
)

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MEMBERS = {_CONFIG: MOST_JSON_BYTES, _METADATA: MOST_JSON_BYTES, _WEIGHTS: MOST_MODEL_BYTES}

# Where in Keras the parts of a model may come from, and what of these runs code or reads other files.
_MODULES = {
    "keras.activations",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.regularizers",
    "keras.src.models.functional",
    "keras.src.models.sequential",
    "keras.src.ops.nn",
    "keras.src.ops.numpy",
}
_REFUSED = {
    "FlaxLayer",
    "IntegerLookup",
    "JaxLayer",
    "Lambda",
    "StringLookup",
    "TFSMLayer",
    "TextVectorization",
    "TorchModuleWrapper",
}
_KERAS = {"DTypePolicy", "FloatDTypePolicy", "Functional", "Model", "Sequential"}  # of "keras" itself
_VALUES = {"__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__"}  # no classes: JSON of Keras' own
_FUNCTION_MODULES = {"builtins", "keras.activations"}  # "builtins" are those of Keras
_NUMBERS = "biuf"  # kinds of arrays


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The bytes of a `.keras` file that may be given to Keras.

    Args:
        content: All of them.
        what: Where they are from, for messages.
        config: What the file says of the layers.
        keras: The version of Keras that wrote it.
    """

    content: bytes
    what: str
    config: Mapping[str, Any]
    keras: str

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Reads and checks a file.

        Raises:
            InputError: If it is missing, or refused as `of` does.
        """
        return cls.of(read_bytes(path), str(path))

    @classmethod
    def of(cls, content: bytes, what: str) -> ModelFile:
        """Checks the bytes of a file.

        Args:
            content: All of them.
            what: Where they are from, for messages.

        Raises:
            InputError: If they are no `.keras` file, or one that Keras is not to open.
        """
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise InputError(f"{what} is not a .keras file, or not all of it. Give the model.keras of a run.")
        members = read_archive(content, what, _MEMBERS)
        metadata = read_json(members[_METADATA], f"{what} ({_METADATA})")
        keras = _checked_version(metadata.get("keras_version"), what)
        config = read_json(members[_CONFIG], f"{what} ({_CONFIG})")
        for entry in _objects({**config, "compile_config": None}):  # as Keras opens it: not compiled
            _check_object(entry, what)
        _check_weights(members[_WEIGHTS], what)
        return cls(content, what, config, keras)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """How many bytes the file has for the weights."""
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            return archive.getinfo(_WEIGHTS).file_size

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """The shape of its one input, batch first, as the file says; None if it says of none or several."""
        shapes = [
            entry["config"].get("batch_shape")
            for entry in _objects(self.config)
            if entry["class_name"] == "InputLayer" and isinstance(entry["config"], dict)
        ]
        if len(shapes) != 1 or not isinstance(shapes[0], list):
            return None
        shape = tuple(shapes[0])
        return shape if all(edge is None or type(edge) is int for edge in shape) else None


def path_of(name_or_path: str | Path) -> Path:
    """Where a model of `PRETRAINED` lies; any other path as it is."""
    return PRETRAINED.get(str(name_or_path), Path(name_or_path))


def read_bytes(path: Path, most: int = MOST_MODEL_BYTES) -> bytes:
    """The bytes of a model or bundle.

    Args:
        path: The file.
        most: As many as there may be.

    Raises:
        InputError: If there is no such file, or it is larger.
    """
    if not path.is_file():
        raise InputError(
            f"No model at {path}. Give the model.keras of a run, or one that comes with luna_cls: "
            f"{', '.join(PRETRAINED)}."
        )
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > most:
        raise InputError(f"{path} is no model: it has more than the {most:,} bytes that are read.")
    return content


def read_archive(
    content: bytes, what: str, members: Mapping[str, int], optional: Iterable[str] = ()
) -> dict[str, bytes]:
    """Reads a zip archive of known files into memory.

    Args:
        content: The archive.
        what: Where it is from, for messages.
        members: The names of the files, and how many bytes each may have at most.
        optional: Those of them that may be missing.

    Returns:
        The files by name.

    Raises:
        InputError: If it is damaged or encrypted, lacks a file, has one twice or one more, or if a file is a
            link or too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            read = _read_entries(archive, f"{what} is refused: the archive", members)
    except InputError:
        raise
    except Exception as error:  # whatever a hostile or damaged archive makes zipfile raise
        raise InputError(f"{what} is damaged: {_first_line(error)}. Copy it anew.") from error
    missing = [name for name in members if name not in read and name not in optional]
    if missing:
        raise InputError(f"{what} is refused: the archive lacks {missing[0]}.")
    return read


def _read_entries(archive: zipfile.ZipFile, refused: str, members: Mapping[str, int]) -> dict[str, bytes]:
    if min((entry.header_offset for entry in archive.infolist()), default=0) != 0:
        raise InputError(f"{refused} is not whole, or not all of the file.")
    read: dict[str, bytes] = {}
    for entry in archive.infolist():
        name = entry.orig_filename
        if name not in members:
            raise InputError(f"{refused} holds {name[:80]!r}, which has no place in it.")
        if name in read:
            raise InputError(f"{refused} holds {name} twice.")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InputError(f"{refused} holds {name} as a link, or what else is no file.")
        most = members[name]
        if entry.file_size > most:
            raise InputError(
                f"{refused} claims {entry.file_size:,} bytes for {name}; at most {most:,} are read."
            )
        if entry.file_size > max(MOST_JSON_BYTES, _MOST_PACKED * entry.compress_size):
            raise InputError(
                f"{refused} claims {entry.file_size:,} bytes for {name}, packed into {entry.compress_size:,}."
            )
        with archive.open(entry) as file:
            read[name] = file.read(most + 1)
        if len(read[name]) != entry.file_size:
            raise InputError(f"{refused} holds {len(read[name]):,} of the bytes of {name} that it claims.")
    return read


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """What Keras makes objects of, wherever it lies in a config."""
    pending = [config]
    while pending:
        entry = pending.pop()
        if isinstance(entry, dict) and "class_name" in entry and "config" in entry:
            yield entry
        pending.extend(_children(entry))


def _check_object(entry: Mapping[str, Any], what: str) -> None:
    name, module = str(entry["class_name"])[:80], str(entry.get("module"))[:80]
    if name in _VALUES:
        return
    if name in _REFUSED:
        _refuse(what, f"it holds a layer {name}, which can run code or read files")
    is_function = name == "function"
    part = str(entry["config"])[:80] if is_function else name
    registered = str(entry.get("registered_name"))[:80]
    if is_function:
        is_known = module in _FUNCTION_MODULES
    else:  # classes begin with a capital, functions beside them do not
        is_known = name in _KERAS if module == "keras" else module in _MODULES and name[:1].isupper()
    # Keras would follow a name with dots to whatever it exports, `config.set_floatx` and all.
    if not is_known or not part.isidentifier() or ">" in registered:
        asked = registered if ">" in registered else f"{module}.{part}"
        _refuse(what, f"it asks for {asked}, and only parts of Keras itself are taken")


def _checked_version(written: Any, what: str) -> str:
    """The version of Keras that wrote a file, as it says; refused if it is newer than the one installed."""
    if not isinstance(written, str) or not re.fullmatch(KERAS_VERSION, written):
        _refuse(what, f"it does not say which Keras wrote it. Received: {str(written)[:40]}")
    check_version(written, what)
    return written


def check_version(written: str, what: str) -> None:
    """Refuses what a newer Keras wrote than the one installed.

    Raises:
        InputError: If so; says how to install it.
    """
    installed = version("keras")
    if _numbers(written) > _numbers(installed):
        raise InputError(
            f"{what} was written by Keras {written}, and Keras {installed} is installed. "
            f"Install a newer one: pip install 'keras>={written}'."
        )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", release)[:3])


def _check_weights(content: bytes, what: str) -> None:
    """Walks the HDF5 file of the weights: every array lies in it, as it is, and holds finite numbers."""
    import h5py

    links: list[tuple[str, Any]] = []

    def visit(name: str, link: Any) -> bool | None:
        links.append((name, link))
        return len(links) > _MOST_LINKS or None  # anything but None ends the visit

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            if file.visititems_links(visit):
                _refuse(what, f"its weights have more than {_MOST_LINKS:,} parts")
            total = 0
            for name, link in links:
                if not isinstance(link, h5py.HardLink):
                    _refuse(what, f"its weights hold a link out of the file, {name[:80]}")
                if not isinstance(file[name], h5py.Group):
                    total += _check_array(file[name], name[:80], what)
            if total > len(content):
                _refuse(what, f"its weights claim {total:,} bytes and have {len(content):,}")
    except InputError:
        raise
    except Exception as error:  # whatever a hostile or damaged file makes HDF5 raise
        _refuse(what, f"its weights are damaged ({_first_line(error)})", error)


def _check_array(array: Any, name: str, what: str) -> int:
    """Its bytes, as many as it says."""
    import h5py
    import numpy as np

    if not isinstance(array, h5py.Dataset) or array.dtype.kind not in _NUMBERS:
        _refuse(what, f"its weights hold {name}, which is no array of numbers")
    if array.external or array.is_virtual:
        _refuse(what, f"its weights hold {name}, which lies in another file")
    claimed = math.prod(array.shape) * array.dtype.itemsize
    is_packed = array.id.get_create_plist().get_nfilters() > 0
    if is_packed or array.id.get_storage_size() != claimed:
        _refuse(what, f"its weights claim {claimed:,} bytes for {name} that are not there")
    if array.dtype.kind == "f" and not np.isfinite(array[()]).all():
        _refuse(what, f"its weights {name} are not all finite. Train it again")
    return claimed


def _refuse(what: str, reason: str, error: Exception | None = None) -> NoReturn:
    raise InputError(f"{what} cannot be loaded as a Keras model: {printable(reason)}.") from error


def printable(text: str) -> str:
    """One line of what others wrote, without characters that would command a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def _first_line(error: BaseException) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
