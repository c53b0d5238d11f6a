"""Directory trees on a file server, as a kind of backend for deprovisioner.

- `kind`        the fields of a manifest
- `root`        the server: its folders, its identity, its lock, what its errors mean
- `marks`       what says whose a tree is
- `backend`     the verbs
- `remove`      a tree removed, however hostile
- `conformance` the Subject for deprovisioner's conformance suite
"""
