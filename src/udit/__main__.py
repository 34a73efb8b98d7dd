"""The program ``udit``, which is ``python -m udit`` as well."""

import sys


def main() -> None:
    """Runs a command. Ctrl-C while the command line is imported is one line, as it is later."""
    try:
        from udit.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("udit: error: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
