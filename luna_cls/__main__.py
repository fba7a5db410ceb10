"""`python -m luna_cls`, and the command `luna-cls`."""

from luna_cls.cli import app


def main() -> None:
    """Runs the command line."""
    app(prog_name="luna-cls")


if __name__ == "__main__":
    main()
