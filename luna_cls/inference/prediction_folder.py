"""The folder that predict makes: each scan has one of its own in it, as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from luna_cls.cubes.store import FAILURE_COLUMNS
from luna_cls.errors import InputError
from luna_cls.files import (
    PREDICTION,
    alone_in,
    aside,
    clear,
    is_empty,
    kept_until_done,
    require_new,
    whole_folder,
    write_csv,
    write_json,
    write_text,
    written_whole,
)
from luna_cls.scans.volume import ScanSource, files_of

FINDINGS, FAILURES, SERIES_UIDS = "findings.csv", "failures.csv", "seriesuids.csv"
BEGUN = "begun"  # of prediction.json: when; all else there must be the same to go on
TWICE, EXPORT = "twice", "export"  # status of a failure, beside those of a store
_SCANS, _NOTE = "scans", "scan.json"
_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,199}")

Failure = tuple[str, int | None, str, str]  # FAILURE_COLUMNS


class Made(NamedTuple):
    """What the files of a scan were made from.

    Args:
        files: Path, size in bytes and time of change (ns) of each of the scan's files.
        candidates: A checksum of its candidates; empty where points were proposed.
    """

    files: Sequence[Sequence[str | int]]
    candidates: str

    @classmethod
    def of(cls, source: ScanSource, own: pd.DataFrame | None) -> Made:
        """As things are now, for a scan and its own rows of a list of candidates."""
        if not source.path.exists():
            raise InputError(f"No scan at {source.path}. Correct the path, or leave it out.")
        files: list[list[str | int]] = []
        for path in files_of(*source):
            found = path.stat()
            files.append([str(path.absolute()), found.st_size, found.st_mtime_ns])
        hashed = b"" if own is None else own.to_csv(lineterminator="\n").encode()
        return cls(files, hashlib.sha256(hashed).hexdigest() if hashed else "")


class Outcome(NamedTuple):
    """What became of one scan.

    Args:
        series_uid: The scan's.
        num_findings: How many candidates were scored.
        failures: What could not be used: the scan (no row), or candidates of it, or a format.
        is_read: Whether the scan was.
    """

    series_uid: str
    num_findings: int
    failures: list[Failure]
    is_read: bool = True


@dataclass(frozen=True)
class PredictionFolder:
    """`OUT` of predict.

    Args:
        path: The folder.
    """

    path: Path

    @contextmanager
    def begun(
        self, about: Mapping[str, Any], *, resume: bool, force: bool, inputs: Iterable[Path]
    ) -> Iterator[dict[str, Any]]:
        """Makes the folder, or goes on in it, and keeps others out of it in the block.

        If the block fails before a scan is done, all is as it was before.

        Args:
            about: What `prediction.json` is to say.
            resume: Go on with what is there, if it was begun with the same.
            force: Replace an earlier prediction.
            inputs: What must not be replaced.

        Yields:
            What `prediction.json` says: `about`, with the time at which the folder was begun first.

        Raises:
            InputError: If it exists, and is not to be replaced or gone on with; or was begun otherwise.
        """
        taken = f"Another predict is at work in {self.path}. Wait for it."
        if resume and self.path.exists() and not is_empty(self.path):
            with alone_in(self.path, taken):
                yield self._gone_on_with(about)
            clear(aside(self.path))  # of a predict --force that was killed
            return
        if self.path.exists() and not force and (self.path / PREDICTION).is_file():
            raise InputError(
                f"{self.path} exists already. Pass --resume to go on with it, --force to replace it, or "
                "choose another path."
            )
        require_new(self.path, force=force or resume, sign=PREDICTION, inputs=inputs)
        with ExitStack() as stack:
            if self.path.is_dir():
                stack.enter_context(alone_in(self.path, taken))
            stack.enter_context(kept_until_done(self.path, is_of_use=self._has_scans))
            with whole_folder(self.path) as folder:
                write_json(folder / PREDICTION, about)
                (folder / _SCANS).mkdir()
            try:
                with alone_in(self.path, taken):
                    yield dict(about)
            except BaseException:
                if not self._has_scans():
                    clear(self.path)
                raise

    def _has_scans(self) -> bool:
        return any((self.path / _SCANS).glob("[!.]*"))

    def _gone_on_with(self, about: Mapping[str, Any]) -> dict[str, Any]:
        path = self.path / PREDICTION
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path} cannot be gone on with: it has no {PREDICTION} that can be read. Choose "
                "another path."
            ) from error
        now = json.loads(json.dumps(about))
        for key in [key for key in {**now, **before} if key != BEGUN]:
            if before.get(key) != now.get(key):
                raise InputError(
                    f"{self.path} was begun otherwise: {key} was {_short(before.get(key))}, is "
                    f"{_short(now.get(key))}. Choose another path, or pass --force to start over."
                )
        (self.path / _SCANS).mkdir(exist_ok=True)
        for leftover in (self.path / _SCANS).glob(".*.partial"):
            shutil.rmtree(leftover)
        return before

    def check_scans(self, uids: Iterable[str]) -> None:
        """Refuses to forget findings of scans that are not given any more.

        Raises:
            InputError: If there are such; names the first.
        """
        given = {_folder_name(uid) for uid in uids}
        others = sorted(path.name for path in (self.path / _SCANS).glob("[!.]*") if path.name not in given)
        if others:
            raise InputError(
                f"{self.path} has findings of {len(others)} scans that are not given now. Give them, too, or "
                f"delete their folders first: {self.path / _SCANS / others[0]}, ..."
            )

    def of_scan(self, series_uid: str) -> Path:
        """The folder of one scan, whether or not it is there."""
        return self.path / _SCANS / _folder_name(series_uid)

    def done(self, series_uid: str, made: Made) -> Outcome | None:
        """What became of a scan, if it was done, from what is there now and in all formats; else None."""
        try:
            note = json.loads((self.of_scan(series_uid) / _NOTE).read_text(encoding="utf-8"))
            is_same = Made(note["files"], note["candidates"]) == Made(list(made.files), made.candidates)
            is_same = is_same and (self.of_scan(series_uid) / FINDINGS).is_file()
            failures = [(series_uid, row, status, reason) for row, status, reason in note["failures"]]
            is_whole = not any(status == EXPORT for _, _, status, _ in failures)
            return Outcome(series_uid, note["num_findings"], failures) if is_same and is_whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def writing(self, outcome: Outcome, made: Made) -> Iterator[Path]:
        """Yields an empty folder for the files of a scan, which takes its place when the block succeeds.

        The block may add to the failures of `outcome`, if they are a list.
        """
        with whole_folder(self.of_scan(outcome.series_uid)) as folder:
            yield folder
            note = {
                "seriesuid": outcome.series_uid,
                "num_findings": outcome.num_findings,
                "failures": [failure[1:] for failure in outcome.failures],
                **made._asdict(),
            }
            write_json(folder / _NOTE, note)

    def finish(
        self, uids: Sequence[str], outcomes: Mapping[str, Outcome], extra: Sequence[Failure]
    ) -> pd.DataFrame:
        """Writes the tables of all scans, in the order of `uids`; `extra` are failures of no scan's own.

        Returns:
            That of the failures.
        """
        failures = failures_table([*(row for uid in uids for row in outcomes[uid].failures), *extra])
        write_csv(self.path / FAILURES, failures)
        write_text(self.path / SERIES_UIDS, "".join(f"{uid}\n" for uid in uids))
        with (
            written_whole(self.path / FINDINGS) as temporary,
            temporary.open("w", encoding="utf-8") as all_of,
        ):
            header = ""
            for uid in uids:
                if not outcomes[uid].is_read:
                    continue
                with (self.of_scan(uid) / FINDINGS).open(encoding="utf-8") as own:
                    first = own.readline()
                    all_of.write("" if header else first)
                    header = header or first
                    shutil.copyfileobj(own, all_of)
        return failures


def failures_table(failures: Sequence[Failure]) -> pd.DataFrame:
    """What could not be used, as `failures.csv` has it."""
    return pd.DataFrame(failures, columns=list(FAILURE_COLUMNS)).astype({"row": "Int64"})


def _folder_name(series_uid: str) -> str:
    """A series UID out of a file may be no file name, or lead elsewhere; a checksum of it then is."""
    if _FILE_NAME.fullmatch(series_uid):
        return series_uid
    return f"sha256-{hashlib.sha256(series_uid.encode(errors='replace')).hexdigest()[:32]}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
