"""How fast the service is, beside PostgreSQL alone and other queues: `make bench` and `make bench-scale`.

- `__main__`      the command line of `make bench`: it runs the rounds and prints the table
- `rounds`        the parts of a round, the rows that they add to the table, and the ratios between rows
- `measures`      one function for each measure; it returns the figures
- `floors`        the product's own statements, run by pgbench: what PostgreSQL alone can do
- `load`          the process that sends the DELETEs
- `real`          the teardown of real databases and namespaces, by the product and by a bare loop
- `costs`         what one job costs, counted: round trips, commits, WAL, CPU
- `table`         the table of figures, ratios and targets
- `stack`         the servers and processes that are measured, in a temporary home
- `noop_worker`   a worker with the backend kind `noop`, which the product does not have
- `peers/`        the other queues
- `scale/`        `make bench-scale`: what grows with the backlog, with tenants, under a held snapshot
- `bulk`          millions of rows for `scale`, written by set-based SQL
- `plots`         writes the plots and tables of docs/scaling.md
"""
