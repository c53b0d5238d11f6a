"""What the API and the workers share. It imports neither of them, and no backend's SDK.

The map, in reading order:

- `states`        the two state machines, as data
- `tables/`       tables, indexes and CHECKs
- `rows`          a frozen dataclass for each row that leaves this package
- `events`        what can happen to a job: the words of the evidence and of the log
- `logs`          how log lines are written
- `jobs/`         every transition of a job; nothing else writes a job's state
- `kinds/`        the manifest of each kind of backend: its fields, its checks, what is secret in it
- `resources`     registers, changes and finds resources
- `actions/`      what a caller may ask for, a function each; HTTP routes and commands call it and add no rule
- `holds`         stops, engaged by an operator or by a brake
- `brakes`        how many teardowns may start in a window
- `breakers`      which backends are out of reach, shared by all workers
- `observations`  inspections of a backend that an operator asks a worker for
- `approvals`     actions that take two operators
- `advice`        what an operator should do next about a job
- `operations/`   bulk work that an operator begins and workers advance
- `queries/`      reads for the API and the CLI
- `doctor/`       every invariant as a query
- `audit/`        chains of events, checkpoints over them, and the proof of a deletion
- `doorbell/`     the wake-up that says "there is work": best effort, carries no authority
- `batching`      statements of several threads in one commit
- `tokens`        bearer tokens, hashed at rest
- `credentials`   credentials of resources, encrypted at rest
- `settings`, `db`, `errors`   the configuration, the control database, the tree of errors
"""
