"""The system users that servers run as: who gets what, and what is never given away."""

import os
from pathlib import Path

import pytest

from deprovisioner.up import users
from deprovisioner.up.home import prepare
from deprovisioner.up.users import User
from outbox.errors import DeprovisionerError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
OURS = User(users.NUMBERS[0], users.NUMBERS[0], users.NUMBERS[1])


@as_root
def test_a_folder_is_given_with_all_in_it_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "data"
    (outside / "secret").mkdir(parents=True)
    (inside / "base").mkdir(parents=True)
    for path in (inside / "base" / "file", outside / "secret" / "file"):
        path.touch()
    for path in (inside, inside / "base", inside / "base" / "file"):
        os.chown(path, 65534, 65534)
    (inside / "folder").symlink_to(outside / "secret")
    (inside / "link").symlink_to(outside / "secret" / "file")
    for link in ("folder", "link"):
        os.chown(inside / link, 65534, 65534, follow_symlinks=False)
    os.link(outside / "secret" / "file", inside / "hard")
    for _ in range(2):  # again, as after a cut
        users.give(inside, OURS)
        given = [inside, *(path for path in inside.rglob("*") if path.name != "hard")]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in given} == {(OURS.uid, OURS.gid)}
        assert {path.stat().st_uid for path in (outside / "secret", outside / "secret" / "file")} == {0}
    assert inside.stat().st_mode & 0o777 == 0o700


@as_root
def test_servers_of_a_home_keep_their_users_which_all_differ(tmp_path: Path) -> None:
    home = tmp_path / "home"
    seen = {}
    for name in ("control", "pg-main", "broker"):
        user = seen[name] = users.of_server(home, name, tmp_path)
        assert user is not None
        (home / name).mkdir()
        users.give(home / name, user)
    assert len({number for user in seen.values() for number in (user.uid, user.home_gid)}) == 4
    assert home.stat().st_gid == seen["control"].home_gid
    assert {name: users.of_server(home, name, tmp_path) for name in seen} == seen


@as_root
def test_a_number_that_something_has_is_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", users.NUMBERS[0], users.NUMBERS[1])
    monkeypatch.setattr(users, "NUMBERS", users.NUMBERS[:3])
    assert {users._unused(tmp_path) for _ in range(30)} == {users.NUMBERS[2]}


def test_a_folder_that_others_use_is_not_closed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "project").mkdir(parents=True)
    shared.chmod(0o755)
    with pytest.raises(DeprovisionerError, match="other users may enter it"):
        prepare(shared)
    assert shared.stat().st_mode & 0o777 == 0o755
