"""What `geodino` and `python -m geodino` start: all else is imported late, so that Ctrl-C is quiet from the outset."""

import atexit
import gc
import sys

INTERRUPTED = 130  # what a shell calls an end by Ctrl-C


def main() -> None:
    """The command line of `geodino.cli`."""
    # Python looks for garbage once more at its end: 1.3 s among the half million objects of torch and transformers.
    atexit.register(gc.freeze)
    try:
        from geodino import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
