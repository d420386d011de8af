"""`python -m avsal`: the same as the command `avsal`."""

import sys

from avsal.cli import main

if __name__ == "__main__":
    sys.exit(main())
