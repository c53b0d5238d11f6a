"""Preloaded by the server that tests/support/forked.py forks from."""

from tests.support import crash_points

crash_points.warm()
