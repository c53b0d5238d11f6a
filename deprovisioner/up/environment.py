"""The variables that `up` sets, and which of its processes gets which of them."""

import re
from collections.abc import Mapping
from pathlib import Path

from outbox.settings import PREFIX, address_variables

DATABASE_URL = f"{PREFIX}DATABASE_URL"
BROKER_URL = f"{PREFIX}BROKER_URL"
BACKENDS = f"{PREFIX}BACKENDS"
CREDENTIALS_KEY = f"{PREFIX}CREDENTIALS_KEY"
API_URL = f"{PREFIX}API_URL"
OPERATOR_TOKEN = f"{PREFIX}OPERATOR_TOKEN"
TENANT_TOKEN = f"{PREFIX}TENANT_TOKEN"
SERVICE_PASSWORD = f"{PREFIX}SERVICE_PASSWORD"
PG_MAIN_DSN = "PG_MAIN_DSN"
REDIS_MAIN_URL = "REDIS_MAIN_URL"
# The service's accounts on the same servers. In `env`, the two above are the administrators' addresses, as they always
# were; a worker gets the service's account under all four names, since the backends file of an older home has the two.
PG_MAIN_SERVICE_DSN = "PG_MAIN_SERVICE_DSN"
REDIS_MAIN_SERVICE_URL = "REDIS_MAIN_SERVICE_URL"

# The caller's shell may hold secrets of anything; none of our processes needs those. libpq's variables (PGSSLROOTCERT)
# are for the control database; PG_MAIN_DSN is not one of them.
_GENERAL = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON[A-Z]*|"
    "SSL_CERT_(FILE|DIR)|PG[A-Z]+"
)


def worker_variables(backends_file: Path) -> set[str]:
    """The variables that hold the backends' addresses, which only workers get. Raises SettingsError."""
    # A backend may take its address from one of our settings; the API needs that setting all the same.
    named = {name for name in address_variables(backends_file) if not name.startswith(PREFIX)}
    return named | {PG_MAIN_DSN, REDIS_MAIN_URL, PG_MAIN_SERVICE_DSN, REDIS_MAIN_SERVICE_URL}


def of_worker(environment: Mapping[str, str], addresses: set[str]) -> dict[str, str]:
    """What a worker gets: our settings, the backends' addresses, and of the rest what programs in general need."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX) or name in addresses or _GENERAL.fullmatch(name)
    }


def of_api(environment: Mapping[str, str], addresses: set[str]) -> dict[str, str]:
    """What the API and commands get: the same without the backends' addresses."""
    return {name: value for name, value in of_worker(environment, set()).items() if name not in addresses}


def without_password(url: str) -> str:
    """The URL as it may be printed."""
    return re.sub(r"//[^/@]*@", "//…@", url)
