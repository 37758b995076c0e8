"""`python -m fxsolve`: see fxsolve.cli."""

import sys

from fxsolve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
