"""What this provisioner makes: notebooks, each with a login. Every effect is a line of `HOME/effects.log`."""

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

Said = dict[str, Any]
Answer = tuple[int, Said]  # an HTTP status and a body
PAGE = 500
SCHEMA = """
    CREATE TABLE IF NOT EXISTS provisioner (server TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS notebooks (
        external TEXT PRIMARY KEY, generation TEXT UNIQUE, password TEXT NOT NULL, notes TEXT NOT NULL DEFAULT '',
        quarantined INT NOT NULL DEFAULT 0, job INT NOT NULL DEFAULT 0, fence INT NOT NULL DEFAULT 0, last_key TEXT)
"""
CHANGES = {
    "provision": "quarantined = quarantined",
    "adopt": "generation = :generation",
    "unmark": "generation = NULL",
    "quarantine": "quarantined = 1",
    "release": "quarantined = 0",
}


class Notebooks:
    """The notebooks of one home folder. Every method is one transaction, so what it compares is what it changes."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.file, self.log = home / "provisioner.sqlite", home / "effects.log"
        with self._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            if not db.execute("SELECT server FROM provisioner").fetchone():
                db.execute("INSERT INTO provisioner VALUES (?)", (f"notebooks-{uuid.uuid4()}",))
            self.server: str = db.execute("SELECT server FROM provisioner").fetchone()["server"]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.file, timeout=60, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def act(self, verb: str, said: Said) -> Answer:
        """Compare, change, and log the effect. A key that came last is a repetition: nothing is done twice."""
        manifest, key, generation = said["manifest"], said["key"], said["generation"]
        attempt = (said.get("job") or 0, said.get("fence") or 0)
        if manifest.get("server") not in (None, self.server):
            return 409, {"error": f"this is {self.server}"}
        with self._transaction() as db:
            row = _find(db, manifest["external"], generation)
            if row is None and verb != "provision":
                return 404, {"error": "there is no such notebook"}
            if row and (row["external"] != manifest["external"] or row["generation"] not in _ours(verb, generation)):
                return 409, {"error": f"notebook {row['external']!r} is of generation {row['generation']}"}
            if row and attempt[0] and attempt < (row["job"], row["fence"]):
                return 409, {"error": "a later attempt was here already"}
            if row and row["quarantined"] and verb in ("adopt", "unmark"):
                return 409, {"error": "it is in quarantine"}
            repeated = row is not None and row["last_key"] == key
            if row is None:
                new = (manifest["external"], generation, hashed(said["credentials"]["password"]))
                db.execute("INSERT INTO notebooks (external, generation, password) VALUES (?, ?, ?)", new)
            if verb == "deprovision":
                db.execute("DELETE FROM notebooks WHERE external = :external", manifest)
            else:
                change = "external = external" if repeated else CHANGES[verb]
                words = {"external": manifest["external"], "generation": generation, "key": key}
                words |= {"job": attempt[0], "fence": attempt[1]}
                more = "job = :job, fence = :fence, last_key = :key"
                db.execute(f"UPDATE notebooks SET {change}, {more} WHERE external = :external", words)
            if not repeated:
                effect = {"verb": verb, "external": manifest["external"], "generation": generation, "key": key}
                with self.log.open("a") as log:
                    log.write(json.dumps(effect | {"attempt": attempt, "at": time.time()}) + "\n")
            return 200, {"did": {"notebooks": 0 if repeated else 1}}

    def inspect(self, said: Said) -> Answer:
        """What bears the name or the generation: only what has neither is absent."""
        with self._transaction() as db:
            row = _find(db, said["manifest"]["external"], said.get("generation"))
        return (200, _shown(row)) if row else (404, {})

    def prove(self, said: Said) -> Answer:
        """Whether the customer's login works; where nobody knows the password, whether any would."""
        status, found = self.inspect(said)
        name, login = said["manifest"]["external"], said["credentials"]
        if status == 200 and login:
            return 200, {"opened": self.opened(name, login["password"]) is not None}
        return status, {"opened": status == 200 and not found["quarantined"]}

    def locate(self, said: Said) -> Answer:
        """What bears the generation, whatever its name."""
        with self._transaction() as db:
            row = _find(db, None, said["generation"])
        return (200, _shown(row)) if row else (404, {})

    def adoptable(self, said: Said) -> Answer:
        """Why `adopt` would refuse it."""
        status, found = self.inspect(said)
        if status != 200:
            return status, found
        whys = {"it is in quarantine": found["quarantined"]}
        whys["it is another resource's"] = found["generation"] not in (None, said.get("generation"))
        return 200, {"findings": [{"code": "refused", "what": why, "mend": ""} for why, is_so in whys.items() if is_so]}

    def objects(self, said: Said) -> Answer:
        """Marked notebooks in the order of their generations, a page at a time; or the one that bears `generation`."""
        wanted, after = said.get("generation"), said.get("cursor") or ""
        where = "generation = ?" if wanted else "generation > ?"
        asked = f"SELECT * FROM notebooks WHERE {where} ORDER BY generation LIMIT {PAGE}"
        with self._transaction() as db:
            rows = db.execute(asked, (wanted or after,)).fetchall()
        more = rows[-1]["generation"] if len(rows) == PAGE else None
        return 200, {"items": [_shown(row) for row in rows], "next": more}

    def opened(self, name: str, password: str, notes: str | None = None) -> str | None:
        """For the customer: what is in the notebook, after `notes` were written; None where the login fails."""
        with self._transaction() as db:
            words = {"name": name, "password": hashed(password), "notes": notes}
            which = "WHERE external = :name AND password = :password AND NOT quarantined"
            if notes is not None:
                db.execute(f"UPDATE notebooks SET notes = :notes {which}", words)
            row = db.execute(f"SELECT notes FROM notebooks {which}", words).fetchone()
        return row and str(row["notes"])


def _find(db: sqlite3.Connection, external: str | None, generation: str | None) -> Any:
    """What bears either; first what bears the generation under another name, since that contradicts most."""
    asked = "SELECT * FROM notebooks WHERE external = :name OR generation = :generation ORDER BY external = :name"
    return db.execute(asked, {"name": external, "generation": generation}).fetchone()


def _ours(verb: str, generation: str) -> tuple[str | None, ...]:
    return (generation, None) if verb == "adopt" else (generation,)


def _shown(row: Any) -> Said:
    return {"external": row["external"], "generation": row["generation"], "quarantined": bool(row["quarantined"])}


def hashed(password: str) -> str:
    """Good enough for random passwords of 24 bytes."""
    return hashlib.sha256(password.encode()).hexdigest()
