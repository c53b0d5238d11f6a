"""What every kind of backend must do, as tests that a third party runs against a kind of its own.

    pip install 'deprovisioner[conformance]'
    pytest --pyargs deprovisioner.conformance --backend=acme_mainframe.conformance:subject

`subject` is a function without arguments that returns a context manager, whose value is a Subject
(`deprovisioner.conformance.subject`). The suite enters it once a run: it starts or reaches a real server, and makes the
account that the kind's documentation asks for. `-m 'not proof'` leaves out what takes minutes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deprovisioner.conformance.subject import Subject

__all__ = ["Subject"]


def __getattr__(name: str) -> Any:
    """`Subject`, when it is asked for: pytest imports this package in every run, for its option."""
    if name == "Subject":
        from deprovisioner.conformance.subject import Subject  # noqa: PLC0415

        return Subject
    raise AttributeError(name)
