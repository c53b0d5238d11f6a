"""Where a transition's function or statement is defined: a test that changes it must change it there."""

import sys
from types import ModuleType

from outbox import jobs


def module_of(name: str) -> ModuleType:
    """The one module of `outbox.jobs` that defines `name`; others may have imported it."""
    if name in jobs.__all__:
        return sys.modules[getattr(jobs, name).__module__]
    parts = (module for module in list(sys.modules) if module.startswith(f"{jobs.__name__}."))
    found = [sys.modules[part] for part in parts if name in vars(sys.modules[part])]
    assert len(found) == 1, f"{name} is defined in {[module.__name__ for module in found]}"
    return found[0]
