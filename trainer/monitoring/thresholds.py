"""The limits beyond which a run needs attention, for the dashboard's alerts and for ``docker/prometheus/rules.yml``.

Prometheus reads its rules from a file, so they repeat these numbers; a test holds them equal. Rules that the dashboard
does not have keep their limits there.
"""

from __future__ import annotations

STALLED_SECONDS = 600.0
"""Time without a step, evaluation or checkpoint after which a run counts as stalled."""
RECENT_RESTART_SECONDS = 600.0
"""Time for which a restart is an alert."""
OVERDUE_CHECKPOINTS = 3
"""Checkpoint intervals that may pass without a checkpoint, in addition to ``OVERDUE_SECONDS``."""
OVERDUE_SECONDS = 60.0
"""Time that writing a checkpoint may take beyond its intervals."""
MIN_FREE_MEMORY_RATIO = 0.1
"""Minimum available fraction of a machine's or container's memory."""
ROLE_ALERT_STATES = ("running", "backing_off", "waiting")
"""The states of a job in which a missing role is an alert."""
STALE_EVENTS_SECONDS = 36 * 3600.0
"""Maximum age of the newest event in the served version of a service."""
