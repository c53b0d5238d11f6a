"""The provisioner's protocol in Flask: signatures, verbs, status URLs. docs/backends.md, "Webhook", is the contract."""

import hashlib
import json
import threading
import time

from flask import Flask, Response, abort, jsonify, request
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.exceptions import HTTPException

from examples.provisioner.notebooks import Answer, Notebooks, Said

ACTIONS = ("provision", "adopt", "quarantine", "release", "deprovision", "unmark")
QUESTIONS = ("inspect", "prove", "objects", "locate", "adoptable")


def make_app(
    notebooks: Notebooks, secret: str, *, verbs: tuple[str, ...] = ACTIONS + QUESTIONS, seconds: float = 0
) -> Flask:
    """A WSGI application. `seconds`: how long an action takes; above 0 it is answered with 202 and a status URL."""
    app, webhook, works = Flask("provisioner"), Webhook(secret), Works(notebooks, seconds)

    def verified() -> bytes:
        try:
            webhook.verify(request.get_data(), dict(request.headers), json_parse=False)
        except (WebhookVerificationError, ValueError):
            abort(401, "the signature is not right, or the clock is not")
        return request.get_data()

    @app.after_request
    def named(answer: Response) -> Response:
        answer.headers["X-Deprovisioner-Server"] = notebooks.server
        return answer

    @app.errorhandler(HTTPException)
    def failed(error: HTTPException) -> tuple[Said, int]:
        """A path that is not there says nothing of an object, so it is no 404."""
        return {"error": error.description}, 501 if error.code == 404 else error.code or 500

    @app.get("/")
    def capabilities() -> Said:
        verified()
        return {"protocol": 1, "server": notebooks.server, "verbs": [*verbs], "status_urls": seconds > 0}

    @app.post("/<verb>")
    def answer(verb: str) -> tuple[Response, int]:
        said = json.loads(verified())
        if verb not in verbs or said["verb"] != verb:
            abort(501, "this verb is not declared, or the signature is another verb's")
        if verb in QUESTIONS:
            status, body = getattr(notebooks, verb)(said)
        else:
            status, body = works.begin(verb, said) if seconds else notebooks.act(verb, said)
        return jsonify(body), status

    @app.get("/status/<id>")
    def status(id: str) -> tuple[Response, int]:
        verified()
        status, body = works.look(id)
        return jsonify(body), status

    @app.route("/notebooks/<name>", methods=["GET", "PUT"])
    def notebook(name: str) -> str:
        """The customers' side: a notebook opens with its name and password."""
        login = request.authorization
        notes = request.get_data(as_text=True) if request.method == "PUT" else None
        if login is None or login.username != name:
            abort(401)
        found = notebooks.opened(name, login.password or "", notes)
        return abort(401) if found is None else found

    return app


class Works:
    """Actions that go on after their answer, by their Idempotency-Key and generation. A restart forgets them."""

    def __init__(self, notebooks: Notebooks, seconds: float) -> None:
        self._notebooks = notebooks
        self._seconds = seconds
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def begin(self, verb: str, said: Said) -> Answer:
        """A key that is at work is not begun again; one that is over is, and `act` knows a repetition."""
        id = hashlib.sha256(f"{said['generation']} {said['key']}".encode()).hexdigest()
        with self._lock:
            if self._answers.get(id, (0, {}))[0] != 202:
                self._answers[id] = 202, {"done": 0, "total": 1, "what": "notebooks"}
                threading.Thread(target=self._work, args=(id, verb, said), name="work", daemon=True).start()
        return 202, {"status_url": f"status/{id}"}

    def _work(self, id: str, verb: str, said: Said) -> None:
        time.sleep(self._seconds)
        status, body = self._notebooks.act(verb, said)
        if status == 404:  # of a status URL it would say that the work was forgotten
            status = 200 if verb == "deprovision" else 409
        with self._lock:
            self._answers[id] = status, body

    def look(self, id: str) -> Answer:
        """202 while it is at work; then what the verb would have answered."""
        with self._lock:
            return self._answers.get(id, (410, {"error": "this work is forgotten: ask for it again"}))
