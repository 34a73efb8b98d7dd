"""``python -m udit`` is ``udit``."""

from udit.cli import main

if __name__ == "__main__":
    main()
