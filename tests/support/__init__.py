"""What is no test: servers, processes, factories, witnesses, crash points, and what prints or compares."""
