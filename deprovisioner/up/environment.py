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


def worker_variables(backends_file: Path) -> set[str]:
    """The variables that hold the backends' addresses, which only workers get. Raises SettingsError."""
    # A backend may take its address from one of our settings; the API needs that setting all the same.
    named = {name for name in address_variables(backends_file) if not name.startswith(PREFIX)}
    return named | {PG_MAIN_DSN, REDIS_MAIN_URL, PG_MAIN_SERVICE_DSN, REDIS_MAIN_SERVICE_URL}


def without(environment: Mapping[str, str], variables: set[str]) -> dict[str, str]:
    """The environment without these variables."""
    return {name: value for name, value in environment.items() if name not in variables}


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without `DEPROVISIONER_…`: a PostgreSQL or Valkey server needs no setting or secret of ours."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX)}


def without_password(url: str) -> str:
    """The URL as it may be printed."""
    return re.sub(r"//[^/@]*@", "//…@", url)
