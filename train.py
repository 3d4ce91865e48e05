"""Trains a network: `python train.py --config=NAME[:ARG] --workdir=DIR [--config.field=value]`.

It is the command `googlenet-jax train`; the same command again goes on where the run in DIR stands.
`--help` says more.
"""

import sys

from googlenet_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
