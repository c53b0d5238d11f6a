"""What every kind of backend must do, as tests that a third party runs against a kind of its own.

    pytest --pyargs deprovisioner.conformance --backend=acme_mainframe.conformance:subject

`subject` is a function without arguments that returns a context manager, whose value is a Subject. The suite enters it
once a session: it starts or reaches a real server, and makes the account that the kind's documentation asks for.
"""

from deprovisioner.conformance.subject import Subject

__all__ = ["Subject"]
