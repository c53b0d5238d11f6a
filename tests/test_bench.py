"""The bench does not run here; what it takes from the product, and how it judges, does."""

import pytest

from bench import floors, measures
from bench.load import resource_id
from bench.table import Table, Target, write_between_markers
from outbox.batching import MAX_BATCH


@pytest.mark.parametrize(
    ("target", "figure", "verdict"),
    [
        (Target(0.4, 0.6), 0.6, "reached"),
        (Target(0.4, 0.6), 0.5, "met"),
        (Target(0.4, 0.6), 0.39, "missed"),
        (Target(4, 3), 3.0, "reached"),
        (Target(4, 3), 4.0, "met"),
        (Target(4, 3), 4.1, "missed"),
    ],
)
def test_a_target_is_better_in_the_direction_it_reaches_for(target, figure, verdict):
    assert target.verdict(figure) == verdict


def test_a_ratio_is_the_median_of_each_rounds_own():
    table = Table()
    table.add("ours", "/s", 1.0, 20.0, 30.0)
    table.add("theirs", "/s", 10.0, 40.0, 30.0)
    table.ratio("ours / theirs", ["ours"], ["theirs"], Target(0.5, 1.0))
    row = table.rows()[-1]
    assert (row["samples"], row["median"], row["verdict"]) == ([0.1, 0.5, 1.0], 0.5, "met")


def test_a_ratio_to_several_is_to_the_one_with_the_best_median():
    table = Table()
    table.add("ours", "/s", 10.0, 10.0, 10.0)
    table.add("lucky once", "/s", 100.0, 1.0, 1.0)
    table.add("good", "/s", 5.0, 5.0, 5.0)
    table.ratio("ours / best", ["ours"], ["lucky once", "good"])
    assert table.rows()[-1] == table.rows()[-1] | {"measure": "ours / best (ours / good)", "median": 2.0}


def test_there_is_no_ratio_to_what_was_not_measured():
    table = Table()
    table.add("ours", "/s", 1.0)
    table.add("theirs: drain", "/s", 1.0)
    table.forget("theirs", "it failed in the second round")
    table.ratio("ours / theirs", ["ours"], ["theirs: drain"])
    assert [row["measure"] for row in table.rows()] == ["ours"]


def test_the_table_goes_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    write_between_markers(readme, "new")
    assert readme.read_text() == "before\n<!-- table -->\n```\nnew\n```\n<!-- /table -->\nafter\n"


def test_the_floors_statements_do_what_the_product_does(settled, db):
    measures.query(measures._SEED, count=1, expired=False)
    dsn = settled["DEPROVISIONER_DATABASE_URL"]
    floors.pgbench(dsn, floors.delete_script(1), clients=1, each=1)
    floors.pgbench(dsn, floors.drain_script(), clients=1, each=1)
    assert measures.drained_in(1) > 0
    assert measures.query("SELECT event FROM events ORDER BY id") == [
        ("enqueued",),
        ("claimed",),
        ("started",),
        ("completed",),
    ]


def test_the_floor_of_many_at_a_time_does_all_of_them(settled, db):
    measures.query(measures._SEED, count=MAX_BATCH, expired=True)
    measures.enqueue_all(MAX_BATCH)
    dsn = settled["DEPROVISIONER_DATABASE_URL"]
    floors.pgbench(dsn, floors.shared_drain_script(), clients=1, each=1)
    assert measures.drained_in(MAX_BATCH) > 0


def test_the_load_names_the_resources_that_were_seeded(settled, db):
    measures.query(measures._SEED, count=2, expired=False)
    ids = {row.id for row in measures.query("SELECT id FROM resources")}
    assert ids == {resource_id(1), resource_id(2)}
