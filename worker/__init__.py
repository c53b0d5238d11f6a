"""Drains the outbox.

- `app`       the Celery application: settings that matter, and the life of a worker process
- `tasks`     what a doorbell message starts; thin
- `hands`     claims as many jobs as there are free hands, keeps their leases alive, sweeps
- `runner`    one job, read from top to bottom: observe, start, act, observe, record
- `looks`     one look at a stuck job's backend, for an operator
- `backends/` one module a kind, behind one Protocol
"""
