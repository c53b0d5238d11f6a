"""The shipped kinds as Subjects of the conformance suite, a module a kind: `subject()` starts a server of its own."""
