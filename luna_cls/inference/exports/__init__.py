"""The formats in which the findings of a scan open where radiologists work, one module each.

Every writer takes a `ScanFindings` and a folder that is there, and writes its files into it, each whole or
not at all and the same bytes for the same findings. Formats for viewers hold what is marked, `json` all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from luna_cls.errors import InputError
from luna_cls.inference.findings import ScanFindings

Writer = Callable[[ScanFindings, Path], None]


def _writer(module: str) -> Writer:
    """The `write` of a module here, which is loaded when it is first called."""

    def write(findings: ScanFindings, folder: Path) -> None:
        import_module(f"{__name__}.{module}").write(findings, folder)

    return write


WRITERS: dict[str, Writer] = {
    "json": _writer("findings_json"),
    "slicer": _writer("slicer"),
    "nifti": _writer("nifti"),
    "sr": _writer("dicom_sr"),
}
_PACKAGES = {"sr": ("pydicom", "highdicom")}  # of the extra `dicom`


def check(formats: Iterable[str]) -> None:
    """Refuses formats that cannot be written, before any scan is read.

    Raises:
        InputError: If one is not in `WRITERS`, or needs a package that is not installed.
    """
    for name in formats:
        if name not in WRITERS:
            raise InputError(
                f"Findings cannot be written as '{name}'. Choose among {', '.join(WRITERS)}, html; or none."
            )
        missing = [package for package in _PACKAGES.get(name, ()) if find_spec(package) is None]
        if missing:
            raise InputError(
                f"Findings cannot be written as '{name}': {missing[0]} is not installed. Install it with "
                "pip install 'luna_cls[dicom]'."
            )
