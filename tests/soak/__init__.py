"""`make soak`: the real product under load and faults, and a verdict from the servers' own logs and catalogs."""
