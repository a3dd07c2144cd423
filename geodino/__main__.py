"""What `geodino` and `python -m geodino` start: all else is imported late, so that Ctrl-C is quiet from the outset."""

import sys

INTERRUPTED = 130  # what a shell calls an end by Ctrl-C


def main() -> None:
    """The command line of `geodino.cli`."""
    try:
        from geodino import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
