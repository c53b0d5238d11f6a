"""All tests and fixtures of the suite, for a module that star-imports them and has a fixture `subject` of its own."""

from deprovisioner.conformance import objects, test_identity, test_kills, test_life, test_words

MODULES = (test_identity, test_life, test_kills, test_words)
TESTS = {name: test for module in MODULES for name, test in vars(module).items() if name.startswith("test_")}
FIXTURES = {name: getattr(objects, name) for name in ("backend", "make", "only_what_can_be_shown")}
FIXTURES["calls"] = test_kills.calls
globals().update(TESTS | FIXTURES)
__all__ = [*TESTS, *FIXTURES]  # noqa: PLE0604 - names all
