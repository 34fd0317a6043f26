"""`python -m mst` is the `mst` command."""

import sys

from mst.cli import main

if __name__ == "__main__":
    sys.exit(main())
