"""A reference provisioner for deprovisioner's kind `webhook`: README.md says how to run it in a minute.

- `notebooks` what it provisions: notebooks with a login each, in one SQLite file, and what may be done to them
- `app`       the protocol, as docs/backends.md describes it; and the customers' side
"""
