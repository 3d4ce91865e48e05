"""`python -m googlenet_jax` is the command `googlenet-jax`."""

import sys

from googlenet_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
