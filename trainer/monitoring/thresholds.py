"""The limits beyond which a run needs attention, for the dashboard's alerts and for ``docker/prometheus/rules.yml``.

Prometheus reads its rules from a file, so they repeat these numbers; a test holds them equal.
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
MAX_WORKER_SKEW = 1.5
"""Maximum ratio of the slowest worker's local time to the mean."""
MIN_FREE_MEMORY_RATIO = 0.1
"""Minimum available fraction of a machine's or container's memory."""
MAX_GPU_MEMORY_RATIO = 0.95
"""Maximum used fraction of a GPU's memory."""
LOCAL_PHASES = ("data", "sample", "gradients")
"""The phases of a step in which a worker does not wait for servers or other workers."""
ROLE_ALERT_STATES = ("running", "backing_off", "waiting")
"""The states of a job in which a missing role is an alert."""
REFRESH_FAILING_SECONDS = 1800.0
"""Time for which attempts of ``crossfade refresh`` may fail while none succeeds."""
STALE_EVENTS_SECONDS = 36 * 3600.0
"""Maximum age of the newest event in the served version of a service."""
MIN_REFRESH_METRIC_RATIO = 0.8
"""Minimum ratio of the metric of the served model on new events to its average of the last days."""
