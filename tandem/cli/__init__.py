"""The ``tandem`` command."""

from tandem.errors import ConfigError
from tandem.registry import check_own

try:
    check_own("server", "server")  # before anything imports it
except ConfigError as error:
    raise SystemExit(f"error: {error}") from None
