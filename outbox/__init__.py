"""What the API and the workers must agree on: the outbox, and nothing about either of them.

The map, in reading order:

- `states`     the two state machines, as data
- `tables`     the tables, indexes and CHECKs behind them
- `rows`       one frozen dataclass per row that leaves this package
- `jobs`       every transition of a job: the only writer of states
- `resources`  the birth of a resource, and what may be changed while it lives
- `queries`    reads for the API and the CLI; never writes
- `doctor`     every invariant as a query; never writes
- `holds`      an operator's stop, or a brake's;  `brakes`  how many teardowns may start in a window
- `breakers`   which backends are out of reach, shared by all workers
- `tokens`     bearer tokens, hashed at rest
- `credentials` those of resources, encrypted at rest
- `doorbell`   "there is work": best effort, carries no authority
- `settings`, `db`, `events`, `errors`   the ground they stand on
"""
