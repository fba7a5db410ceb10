"""`python -m luna_cls`, and the command `luna-cls`."""

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from luna_cls.cli import app

        app(prog_name="luna-cls")
    except KeyboardInterrupt:  # before a command could take it
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
