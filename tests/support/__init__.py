"""Shared by the tests: servers, processes, factories, witnesses, crash points, and what prints or compares."""
