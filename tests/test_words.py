"""Words that are typed in more than one place: each place offers and explains every member of its enum."""

from enum import StrEnum

import click
import pytest
from pydantic import BaseModel

from api.schemas.holds import BreakerOut
from api.schemas.jobs import ApprovalOut
from api.schemas.operations import OperationOut
from deprovisioner.cli import main, progress, story
from outbox import advice, tokens
from outbox.operations import MAX_RATE, RATE
from outbox.rows import Operation
from outbox.states import (
    BreakerState,
    Difference,
    ForcedAction,
    JobKind,
    JobState,
    OperationKind,
    OperationState,
    ResourceStatus,
    SnapshotPolicy,
    StuckReason,
    TokenRole,
)
from outbox.tables import metadata

# A command's option, and the enum whose values it offers.
CHOICES = {
    "jobs list --state": JobState,
    "jobs list --reason": StuckReason,
    "jobs list --kind": JobKind,
    "jobs redrive-all --reason-was": StuckReason,
    "jobs redrive-all --kind": JobKind,
    "reconcile list --code": Difference,
    "resources list --status": ResourceStatus,
    "resources delete --snapshot": SnapshotPolicy,
    "token create --role": TokenRole,
}


def _options() -> dict[str, click.Parameter]:
    """Every option of every command, by its name and the command's."""
    found: dict[str, click.Parameter] = {}
    open_groups: list[tuple[str, click.Group]] = [("", main)]
    for prefix, group in open_groups:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                open_groups.append((f"{prefix}{name} ", command))
            elif command is not None:
                found |= {f"{prefix}{name} {option}": p for p in command.params for option in p.opts}
    return found


def test_every_choice_of_the_command_offers_exactly_the_values_of_its_enum() -> None:
    offered = {name: option.type for name, option in _options().items() if isinstance(option.type, click.Choice)}
    assert set(offered) == set(CHOICES)
    for name, words in CHOICES.items():
        assert [offered[name].convert(word.value, None, None) for word in words] == list(words)
        assert offered[name].get_metavar(click.Option(["--x"]), click.Context(main)) == f"[{'|'.join(words)}]"


def test_a_member_that_is_added_to_an_enum_is_a_choice_at_once() -> None:
    from deprovisioner.cli.shell import Choice

    longer = StrEnum("longer", {**StuckReason.__members__, "NEW": "new_reason"})
    assert Choice(longer).convert("new_reason", None, None) is longer("new_reason")


@pytest.mark.parametrize("reason", StuckReason)
def test_every_stuck_reason_is_explained_and_has_a_next_step(reason: StuckReason) -> None:
    assert advice.means(reason)
    assert advice.steps(reason)


def test_a_refusal_may_be_a_right_that_is_missing() -> None:
    (when,) = [when for when, _ in advice.steps(StuckReason.REFUSED) if "right" in when and "missing" in when]
    assert when.startswith("if a right or the ownership is missing: grant it")


@pytest.mark.parametrize("action", ForcedAction)
def test_every_action_of_two_operators_has_words_and_a_command_for_the_second(action: ForcedAction) -> None:
    assert story._WORDS[action]
    assert advice._forced(action)


@pytest.mark.parametrize("kind", OperationKind)
def test_every_kind_of_operation_has_words_for_its_end(kind: OperationKind) -> None:
    assert progress._ended_well(kind)


@pytest.mark.parametrize(
    ("schema", "field", "words"),
    [
        (BreakerOut, "state", BreakerState),
        (OperationOut, "state", OperationState),
        (OperationOut, "kind", OperationKind),
        (ApprovalOut, "action", ForcedAction),
    ],
)
def test_the_contract_names_the_enum_itself(schema: type[BaseModel], field: str, words: type[StrEnum]) -> None:
    assert schema.model_fields[field].annotation is words


def test_rows_are_read_with_their_enums() -> None:
    assert (Operation.__annotations__["state"], tokens.Token.__annotations__["role"]) == (OperationState, TokenRole)


def test_the_database_computes_an_operation_s_state_in_the_words_of_the_enum() -> None:
    computed = metadata.tables["operations"].c.state.computed
    assert computed is not None
    assert {word for word in OperationState if f"'{word}'" in str(computed.sqltext)} == set(OperationState)
    assert str(computed.sqltext).count("'") == 2 * len(OperationState)


def test_the_command_bounds_the_rate_as_the_operation_does() -> None:
    rate = _options()["jobs redrive-all --rate"]
    assert isinstance(rate.type, click.IntRange)
    assert (rate.type.max, rate.default) == (MAX_RATE, RATE)
