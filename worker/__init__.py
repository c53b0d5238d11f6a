"""Drains the outbox.

- `app`       the Celery application: settings that matter, and the life of a worker process
- `tasks`     what a message starts; thin
- `pool`      the threads of a process: jobs, heartbeats, sweeps, operations
- `claiming`  claims what the free slots can run, by backend
- `listening` waits at the doorbell, and passes wake-ups on
- `state`     what the threads share, under one lock
- `run/`      one job, from its claim to its outcome
- `observer`  one inspection of a stuck job's backend, for an operator
- `backends/` a module for each kind, behind one Protocol
"""
