"""A device's agent whose wall clock stands: ``python -m tests.recordings.standing_device ISO-TIME --dir DIR``."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from unittest.mock import patch

import device.app
from device.__main__ import main


def stand(at: datetime) -> None:
    """Let the agent's clock stand at that time; its timers run."""

    class StandingClock:
        def now(self) -> datetime:
            return at

        def monotonic(self) -> float:
            return time.monotonic()

    patch.object(device.app, "SystemClock", StandingClock).start()


if __name__ == "__main__":
    stand(datetime.fromisoformat(sys.argv.pop(1)))
    sys.exit(main())
