"""The front door: each command parses, calls one function and prints where the result is.

Results go to standard output, progress and messages to standard error. Whatever is slow to import is
imported inside its command, so that `--help` answers at once.
"""

# In the order of --help.
from luna_cls.cli import demonstration, cubes, training, scores, findings  # noqa: F401, I001
from luna_cls.cli.app import app

__all__ = ["app"]
