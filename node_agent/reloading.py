"""What comes of reading the configuration again: said in the log, and made ready for the control loop to take up.

Owns the words about a reload and where the log goes. Must not know which parts of the agent hold which settings.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from node_agent import logs
from node_agent.config import Reread, Settings, reread
from node_agent.domain.ports import LiveLogs, Renewal
from node_agent.domain.turns import Bounds
from node_agent.errors import ConfigError
from node_agent.journald import journald_of

log = structlog.get_logger()

STAY = "The agent works on with the settings it had. Correct the file and reload again."


def set_up_log(settings: Settings) -> None:
    """Write the log as the settings want it from now on."""
    logs.set_up(
        level=settings.logging.level,
        form=settings.logging.format,
        secrets=settings.secrets,
        journal=journald_of(os.environ, sys.stderr),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSettings:
    """Settings that were read again, and who swaps what the agent works with."""

    found: Reread
    bounds: Bounds
    live_logs: LiveLogs | None
    swap: Callable[[], None]

    def take_effect(self) -> None:
        """Let them count from now on, and say so in the log they want."""
        self.swap()
        set_up_log(self.found.settings)
        log.info("configuration_reloaded", settings=list(self.found.taken))
        if self.found.left:
            log.warning("restart_needed", settings=list(self.found.left))


def read_again(running: Settings, prepare: Callable[[Reread], Renewal]) -> Renewal | None:
    """Read the file of the *running* agent again; None when the old settings stay, and the log says why."""
    try:
        return prepare(reread(running))
    except ConfigError as error:
        # the faults say it all; a trace of ours would only hide them
        log.error("reload_refused", reason=error.message, faults=list(error.faults), hint=STAY)  # noqa: TRY400
    except Exception:
        log.exception("reload_bug")
    return None
