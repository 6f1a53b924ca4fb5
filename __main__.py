"""``fewstep`` and ``python -m fewstep``: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; says which extra to install where its packages are missing."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"fewstep: the command line needs the package '{error.name}': pip install 'fewstep[host]'", file=sys.stderr
        )
        raise SystemExit(2) from None
    from fewstep.host.cli import app

    app(prog_name="fewstep")


if __name__ == "__main__":
    main()
