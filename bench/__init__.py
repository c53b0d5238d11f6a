"""Idle latency and drain rate of a backend that does nothing, and the floors below them: `make bench`.

- `__main__`      the order of the measures, and the table
- `measures`      one function a measure; each returns its figures
- `stack`         the servers and processes measured, in a temporary home
- `noop_worker`   a worker process that knows the kind `noop`; the product does not
"""
