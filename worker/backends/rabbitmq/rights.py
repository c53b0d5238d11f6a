"""What the service's account may do, and what a customer's user may not."""

from outbox.errors import Refused
from worker.backends.rabbitmq import marks
from worker.backends.rabbitmq.session import Session

WHAT = "the service's account lacks the tag `administrator`"
# With these a user reaches other customers' vhosts, or undoes its own teardown. `management` reaches its own alone.
POWERFUL = ("administrator", "monitoring", "policymaker", "impersonator")


def missing(session: Session) -> str | None:
    """The command that gives the account its right, None where it has it."""
    try:
        tags = marks.of(session.need("whoami"))
    except Refused:  # it may not even ask
        tags = []
    return None if "administrator" in tags else f"rabbitmqctl set_user_tags {session.server.user} administrator"
