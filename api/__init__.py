"""The HTTP API: it asks the outbox for changes, and reads. It has no backend's address and no credentials of one.

- `app`       the application: its settings, its routes, the order of its layers
- `deps`      who calls, and sessions that survive a lost connection
- `schemas`   what comes in and goes out: the contract, and the only place for pydantic models
- `v1`        the routes, a module a noun
- `problems`  errors as RFC 9457 problems, by one table
- `door`      the bounds of a connection: sizes, times, how many
- `limits`    the largest body that is read
- `health`    is the process alive, and can it serve
"""
