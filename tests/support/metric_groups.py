"""The metrics that each kind of process must expose, and a job, tables and step events to measure."""

from typing import Any

from resolved_jobs import make_resolved

from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.events import StepEvent

PROCESS = {
    *("crossfade_build_info", "crossfade_memory_limit_bytes", "crossfade_memory_available_bytes"),
    *("crossfade_process_virtual_memory_bytes", "crossfade_process_resident_memory_bytes"),
    *("crossfade_process_start_time_seconds", "crossfade_process_cpu_seconds_total"),
    *("crossfade_process_open_fds", "crossfade_process_max_fds"),
}
TRAINING = {
    *("crossfade_examples_total", "crossfade_steps_total", "crossfade_step", "crossfade_planned_steps"),
    *("crossfade_epoch", "crossfade_progress_ratio", "crossfade_loss", "crossfade_epoch_loss"),
    *("crossfade_learning_rate", "crossfade_eval_metric", "crossfade_phase_duration_seconds"),
    "crossfade_active_rows_total",
    *("crossfade_pushed_bytes_total", "crossfade_dense_equivalent_pushed_bytes_total"),
    "crossfade_last_step_timestamp_seconds",
    "crossfade_last_progress_timestamp_seconds",
}
FIRST = {
    *("crossfade_checkpoints_total", "crossfade_checkpoint_pause_seconds_total"),
    "crossfade_last_checkpoint_bytes",
    *("crossfade_last_checkpoint_timestamp_seconds", "crossfade_checkpoint_interval_seconds"),
}
GPU = {"crossfade_gpu_memory_used_bytes", "crossfade_gpu_memory_limit_bytes"}
ROWS = {"crossfade_updated_rows_total", "crossfade_update_seconds_total", "crossfade_table_shard_bytes"}
SERVER = {"crossfade_rejected_commands_total"}
JOB = {"crossfade_restarts_total", "crossfade_generation", "crossfade_job_state", "crossfade_role_up"}
REFRESH = {
    *("crossfade_refresh_attempts_total", "crossfade_refresh_consecutive_failures", "crossfade_refresh_waiting_files"),
    *("crossfade_refresh_last_success_timestamp_seconds", "crossfade_refresh_versions_total"),
    "crossfade_refresh_set_aside_files",
    *("crossfade_refresh_version", "crossfade_refresh_newest_event_timestamp_seconds", "crossfade_refresh_last_result"),
    *("crossfade_refresh_metric_before", "crossfade_refresh_metric_after", "crossfade_refresh_last_version_seconds"),
}
GROUPS = {
    "process": PROCESS,
    "training": TRAINING,
    "first": FIRST,
    "gpu": GPU,
    "rows": ROWS,
    "server": SERVER,
    "job": JOB,
    "refresh": REFRESH,
}
TABLES = [TableSpec("customer", 100, 8, 0.1), TableSpec("track", 50, 8, 0.1)]


def make_job(**sections: Any) -> JobConfig:
    return make_resolved({"name": "plays", "data": {"path": "nowhere"}, **sections})


def step(**values: Any) -> StepEvent:
    event = StepEvent(
        epoch=1,
        step=1,
        steps=10,
        examples=4,
        loss=0.5,
        learning_rate=0.1,
        local_examples=4,
        rows={"customer": 4, "track": 7},
        seconds={},
    )
    return event.model_copy(update=values)
