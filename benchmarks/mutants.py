"""Breaks the code in one small place after the other, and counts how often the tests notice.

    python benchmarks/mutants.py [FILE.py ...] [--jobs 2] [--list] [--only TEXT]

The places are Cosmic Ray's: an operator becomes another, a number goes up or down by one, a condition is
negated, a decorator or a loop falls away. Strings and type unions stay as they are. A mutant is killed when a
test fails, and times out when it takes more than four times the processor time of the sound code. For every
file: mutants, killed, timed out, survivors, and the score, the share of the first two of all; then each
survivor with its line. Exits with 1 where a score is under 85 %.

Every mutant is tried in a fork of one process that has imported whatever is not of this repository, so that
it costs no start of Python, pandas or TensorFlow. It needs Cosmic Ray: `make mutants` installs it.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import ast
import contextlib
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parents[1]
LEAST_SCORE = 0.85

# Quick tests alone; what shows most comes first.
FROC = ["tests/test_froc.py", "tests/test_froc_properties.py", "-m", "not slow and not real_data"]
TOO_LONG = [
    "fit",
    "graph",
    "xla",
    "order",
    "better",
    "large_amplification",
    "never_loses",
    "without_focus",
    "two_classes_is",
]
LOSSES = ["-m", "not slow", "-k", " and ".join(f"not {name}" for name in TOO_LONG)]
WEIGHTS = ["tests/test_losses.py", "-k", "counts or effective or by_hand or the_beta or refused or undo"]
PER_SAMPLE = ["tests/test_losses.py", "tests/test_soft_confusion.py", *LOSSES]
PER_BATCH = ["tests/test_soft_confusion.py", "tests/test_losses.py", *LOSSES]
TESTS = {
    "luna_cls/judging/froc.py": FROC,
    "luna_cls/scans/grid.py": ["tests/test_grid.py"],
    "luna_cls/cubes/plan.py": ["tests/test_plan.py"],
    "luna_cls/learning/losses/__init__.py": WEIGHTS,
    "luna_cls/learning/losses/per_sample.py": PER_SAMPLE,
    "luna_cls/learning/losses/shell.py": PER_SAMPLE,
    "luna_cls/learning/losses/soft_confusion.py": PER_BATCH,
    "luna_cls/learning/losses/weighting.py": WEIGHTS,
}

# One stand-in for each operator: with all of Cosmic Ray's eleven, most mutants are the same fault again.
REPLACED = {
    "ReplaceBinaryOperator": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitOr_BitAnd "
    "BitAnd_BitOr",
    "ReplaceComparisonOperator": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt "
    "Is_IsNot IsNot_Is",
    "ReplaceUnaryOperator": "USub_UAdd Delete_Invert Delete_Not",
}
OPERATORS = [f"core/{kind}_{change}" for kind, changes in REPLACED.items() for change in changes.split()]
OPERATORS += [
    f"core/{name}"
    for name in (
        "AddNot",
        "ReplaceTrueWithFalse",
        "ReplaceFalseWithTrue",
        "ReplaceAndWithOr",
        "ReplaceOrWithAnd",
    )
]
OPERATORS += ["core/NumberReplacer", "core/RemoveDecorator", "core/ZeroIterationForLoop"]

# The same few examples for every mutant, and none made smaller: that a test fails is enough.
settings.register_profile(
    "mutants",
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Mutant(NamedTuple):
    """A fault: where, what, and the whole module with it."""

    line: int
    before: str
    after: str
    code: CodeType

    def __str__(self) -> str:
        return f"line {self.line}\n    - {self.before}\n    + {self.after}"


def main() -> None:
    """Tries all mutants of some files, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE.py", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--only", default="", help="mutants with this text in their line, before or after")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    rows = []
    for file in options.files or TESTS:
        chosen = [m for m in mutants(ROOT / file) if options.only in f"{m.before}\n{m.after}"]
        if options.list:
            print(file, len(chosen), *chosen, sep="\n")
            continue
        start = time.perf_counter()
        fates = try_all(ROOT / file, chosen, TESTS[file], options.jobs)
        count = Counter(fates)
        score = 1 - count["survived"] / len(chosen) if chosen else 1.0
        seconds = time.perf_counter() - start
        row = f"{file:44}{len(chosen):8}{count['killed']:8}{count['timed out']:8}{count['survived']:9}"
        rows.append((score, f"{row}{score:8.1%}{seconds:8.0f}"))
    if rows:
        print(f"\n{'file':44}{'mutants':>8}{'killed':>8}{'late':>8}{'survived':>9}{'score':>8}{'s':>8}")
        print(*(row for _, row in rows), sep="\n")
    sys.exit(any(score < LEAST_SCORE for score, _ in rows))


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module that is Python."""
    source = path.read_text()
    lines = source.splitlines()
    tree, annotations = get_ast(source), _annotations(source)
    for name in OPERATORS:
        operator = plugins.get_operator(name)()
        places = [(node, start) for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, start) in enumerate(places):
            is_union = "BitOr_" in name and any(first < start < last for first, last in annotations)
            if is_union or node.parent.type == "parameters":
                continue  # of types, or the star before arguments that have to be named
            changed = mutate_code(source, operator, occurrence)
            with contextlib.suppress(SyntaxError):
                code = compile(changed, str(path), "exec", dont_inherit=True)
                both = zip(lines, changed.splitlines(), strict=False)
                line, (before, after) = next(pair for pair in enumerate(both, 1) if pair[1][0] != pair[1][1])
                yield Mutant(line, before.strip(), after.strip(), code)


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Line and column of every annotation's start and end."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if part is not None:
                found.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return found


def try_all(path: Path, tried: list[Mutant], tests: list[str], jobs: int) -> list[str]:
    """What becomes of each mutant: "killed", "timed out" or "survived".

    Raises:
        SystemExit: If the tests fail without any.
    """
    _import_what_tests_import(tests)
    sound = compile(path.read_text(), str(path), "exec", dont_inherit=True)
    _, status, usage = os.wait4(_fork(path, sound, tests, 3600), 0)
    if status:
        sys.exit(f"The tests of {path} fail on the sound code: python -m pytest {' '.join(tests)}")
    limit_s = 5 + 4 * int(usage.ru_utime + usage.ru_stime)
    fates, running, waiting = [""] * len(tried), {}, list(enumerate(tried))
    while waiting or running:
        while waiting and len(running) < jobs:
            place, mutant = waiting.pop(0)
            running[_fork(path, mutant.code, tests, limit_s)] = place
        child, status = os.wait()
        place = running.pop(child)
        fates[place] = _fate(status)
        if fates[place] == "survived":
            print(f"{path.relative_to(ROOT)} {tried[place]}", flush=True)
    return fates


def _fate(status: int) -> str:
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if ended_by in (signal.SIGXCPU, signal.SIGKILL):
        return "timed out"
    if ended_by == signal.SIGALRM:
        return "survived"  # it stood still, as a fork may: the tests have not found it
    return "survived" if status == 0 else "killed"


def _import_what_tests_import(tests: list[str]) -> None:
    """Leaves in memory whatever the tests import, but for this repository's own modules."""
    with _silence():
        pytest.main([*tests, *QUIET, "--collect-only"])
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name.partition(".")[0] == "luna_cls" or Path(file).parent == ROOT / "tests":
            del sys.modules[name]


QUIET = [
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:cov",
    "--hypothesis-profile=mutants",
]
QUIET += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


def _fork(path: Path, code: CodeType, tests: list[str], limit_s: int) -> int:
    """A process that runs tests with a module replaced; its exit code is pytest's."""
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException), _silence():
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
        signal.alarm(20 * limit_s)  # for one that waits and does nothing
        from_file = SourceFileLoader.get_code

        def get_code(loader: SourceFileLoader, name: str) -> Any:
            return code if Path(loader.path) == path else from_file(loader, name)

        SourceFileLoader.get_code = get_code
        status = pytest.main([*tests, *QUIET])
    os._exit(status)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed, also not by C++."""
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        yield
    finally:
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)


if __name__ == "__main__":
    main()
