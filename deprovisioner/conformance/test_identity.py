"""What a backend takes an object for, and which word for absence counts."""

import uuid

import pytest

from deprovisioner.conformance.objects import Make, works
from deprovisioner.conformance.properties import shows
from deprovisioner.conformance.subject import Subject
from deprovisioner.conformance.verbs import acting_verbs, every_verb
from deprovisioner.sdk import (
    IN_QUARANTINE,
    Absent,
    Backend,
    Different,
    MarkedObject,
    OutOfService,
    Refused,
    Same,
    Unavailable,
    objects,
)


@shows("told apart")
def test_same_different_and_absent_are_told_apart(subject: Subject, backend: Backend, make: Make) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    assert isinstance(backend.inspect(plan.manifest), Absent), "a plan changes nothing on the server"
    assert not subject.bears(plan.manifest)
    made = make()
    assert isinstance(backend.inspect(made.manifest), Same)
    stranger = made.manifest | {"generation": str(uuid.uuid4())}
    assert isinstance(backend.inspect(stranger), Different), "another generation's, under the same names"
    with subject.session(made.credentials) as use:
        for act in acting_verbs(backend):
            with pytest.raises(Refused):
                act(stranger)
        assert works(use), "what is refused has touched nothing, open sessions included"
    assert subject.can_log_in(made.credentials)
    backend.teardown(made.manifest, 1)
    assert isinstance(backend.inspect(made.manifest), Absent)
    assert not subject.bears(made.manifest)


@shows("name reuse")
def test_an_object_made_again_under_the_same_names_is_refused(subject: Subject, backend: Backend) -> None:
    resource_id = uuid.uuid4()
    first = backend.plan(resource_id, uuid.uuid4())
    gone = backend.provision(first.manifest, first.credentials)
    subject.destroyed_by_hand(gone)
    assert isinstance(backend.inspect(gone), Absent)
    second = backend.plan(resource_id, uuid.uuid4())
    again = backend.provision(second.manifest, second.credentials)
    subject.put(second.credentials)
    assert isinstance(backend.inspect(gone), Different)
    for act in acting_verbs(backend):
        with pytest.raises(Refused):
            act(gone)
    with pytest.raises(Refused):
        backend.provision(first.manifest, first.credentials)
    assert subject.has(second.credentials)
    backend.teardown(again, 1)
    assert not subject.bears(again)


@shows("neighbours")
@pytest.mark.parametrize("made_by", ["us", "hand"])
def test_neighbours_survive_a_teardown(subject: Subject, backend: Backend, make: Make, made_by: str) -> None:
    if made_by == "us":
        made = make()
        manifest, credentials = made.manifest, made.credentials
    elif "adopt" in subject.not_shown:
        pytest.skip(f"adopt: {subject.not_shown['adopt']}")
    else:
        given, credentials = subject.made_by_hand()
        manifest = backend.adopt(given, uuid.uuid4())
    near = [*subject.neighbours(manifest), make().credentials]
    assert len(near) > 1, "`neighbours` makes at least one object"
    for one in (*near, credentials):
        subject.put(one)
    backend.quarantine(manifest)
    assert all(subject.has(one) for one in near)
    backend.teardown(manifest, 1)
    assert not subject.bears(manifest)
    assert all(subject.has(one) for one in near)


@shows("any match is not absence")
def test_a_part_that_matches_is_different_and_is_not_touched(subject: Subject, backend: Backend, make: Make) -> None:
    for disguise in subject.disguises():
        made = make()
        disguise(made.manifest)
        before = backend.inspect(made.manifest)
        assert isinstance(before, Different), disguise
        for act in acting_verbs(backend):
            with pytest.raises(Refused):
                act(made.manifest)
        assert backend.inspect(made.manifest) == before


@shows("any match is not absence")
def test_a_neighbour_that_is_no_longer_itself_stops_no_teardown(subject: Subject, backend: Backend, make: Make) -> None:
    for disguise in subject.disguises():
        made, neighbour = make(), make()
        disguise(neighbour.manifest)
        before = backend.inspect(neighbour.manifest)
        subject.put(made.credentials)
        backend.teardown(made.manifest, 1)
        assert isinstance(backend.inspect(made.manifest), Absent)
        assert backend.inspect(neighbour.manifest) == before


@shows("wrong server")
def test_another_server_is_refused_and_its_absence_does_not_count(
    subject: Subject, backend: Backend, make: Make
) -> None:
    made = make()
    with subject.elsewhere() as other:
        assert isinstance(other.inspect(made.manifest), Different)
        for act in acting_verbs(other):
            with pytest.raises(Refused):
                act(made.manifest)
        plan = other.plan(uuid.uuid4(), uuid.uuid4())
        with pytest.raises(Refused):
            backend.provision(plan.manifest, plan.credentials)
        assert not subject.bears(plan.manifest), "nothing was made before it was refused"
        with pytest.raises(Refused):
            other.adopt(made.manifest, uuid.UUID(made.manifest["generation"]))
        assert subject.can_log_in(made.credentials)
        backend.teardown(made.manifest, 1)
        assert isinstance(other.inspect(made.manifest), Different), "absent counts only on the right server"


@shows("unreachable")
def test_every_verb_says_unavailable_when_the_server_is_out_of_reach(subject: Subject, make: Make) -> None:
    made = make()
    for act in every_verb(subject.dead(), made.manifest, made.credentials):
        with pytest.raises(Unavailable):
            act()
    assert subject.can_log_in(made.credentials)


@shows("not authoritative")
def test_a_server_that_repeats_another_and_lags_is_not_believed(subject: Subject) -> None:
    with subject.not_authoritative() as (primary, lagging):
        plan = primary.plan(uuid.uuid4(), uuid.uuid4())
        manifest = primary.provision(plan.manifest, plan.credentials)
        for act in every_verb(lagging, manifest, plan.credentials):
            with pytest.raises(OutOfService):
                act()
        assert isinstance(primary.inspect(manifest), Same)
        assert subject.can_log_in(plan.credentials)


@shows("inventory")
def test_what_is_told_of_an_object_is_what_its_adoption_takes(subject: Subject, backend: Backend, make: Make) -> None:
    made, bystander = make(), make()
    generation = uuid.UUID(made.manifest["generation"])

    def told() -> MarkedObject:
        (one,) = [one for one in objects(backend) if one.generation == made.manifest["generation"]]
        return one

    one = told()
    assert (one.names, one.quarantined, one.contradictory, one.why) == (made.manifest, False, False, "")
    assert one.resource_id == made.resource_id
    assert backend.adopt(one.names, generation) == made.manifest
    assert subject.can_log_in(made.credentials), "an adoption changes nothing of what it marks"
    backend.quarantine(made.manifest)
    one = told()
    assert (one.names, one.quarantined, one.contradictory, one.why) == (made.manifest, True, False, IN_QUARANTINE)
    with pytest.raises(Refused, match="in quarantine"):
        backend.adopt(one.names, generation)
    assert not subject.can_log_in(made.credentials)
    backend.release(one.names)
    assert backend.adopt(told().names, generation) == made.manifest
    backend.teardown(made.manifest, 1)
    left = {one.generation for one in objects(backend)}
    assert left & {made.manifest["generation"], bystander.manifest["generation"]} == {bystander.manifest["generation"]}
