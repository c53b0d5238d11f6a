"""The HTTP API: writes intent into the outbox, and reads. It holds no backend's credentials.

- `app`       the application and its order of layers
- `deps`      who calls, and a session that survives a lost connection
- `schemas`   what comes in and goes out: the contract, and the only place for pydantic models
- `problems`  errors as RFC 9457 problems, one table
- `limits`    the largest body
- `resources`, `jobs`, `holds`, `health`   the routes
"""
