"""Preloaded by the server that tests/forks.py forks from."""

from tests import doomed

doomed.warm()
