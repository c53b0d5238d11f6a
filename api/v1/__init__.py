"""The routes: each translates a request into one call and its answer into a schema; none has a rule of its own."""
