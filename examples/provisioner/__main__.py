"""Serves it on this machine: `PROVISIONER_SECRET=whsec_… python -m examples.provisioner --home FOLDER --port PORT`."""

import argparse
import os
from pathlib import Path

from examples.provisioner.app import make_app
from examples.provisioner.notebooks import Notebooks


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="a reference provisioner for deprovisioner")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--home", type=Path, required=True, help="the folder of its objects and of effects.log")
    parser.add_argument("--seconds", type=float, default=0, help="how long an action takes; above 0: answered with 202")
    said = parser.parse_args()
    app = make_app(Notebooks(said.home), os.environ["PROVISIONER_SECRET"], seconds=said.seconds)
    app.run("127.0.0.1", said.port, threaded=True)


if __name__ == "__main__":
    main()
