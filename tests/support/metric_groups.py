"""The metrics that each kind of process exposes, by name: the list that tests compare the real ones with."""

PROCESS = {
    *("crossfade_build_info", "crossfade_memory_limit_bytes", "crossfade_memory_available_bytes"),
    *("crossfade_process_virtual_memory_bytes", "crossfade_process_resident_memory_bytes"),
    *("crossfade_process_start_time_seconds", "crossfade_process_cpu_seconds_total"),
    *("crossfade_process_open_fds", "crossfade_process_max_fds"),
}
TRAINING = {
    *("crossfade_examples_total", "crossfade_steps_total", "crossfade_step", "crossfade_planned_steps"),
    *("crossfade_epoch", "crossfade_progress_ratio", "crossfade_loss", "crossfade_epoch_loss"),
    *("crossfade_learning_rate", "crossfade_quality_ratio", "crossfade_phase_seconds", "crossfade_active_rows_total"),
    *("crossfade_pulled_bytes_total", "crossfade_pushed_bytes_total", "crossfade_pushed_if_dense_bytes_total"),
    *("crossfade_ready_batches", "crossfade_last_step_timestamp_seconds"),
    "crossfade_last_progress_timestamp_seconds",
}
FIRST = {
    *("crossfade_checkpoints_total", "crossfade_checkpoint_seconds_total", "crossfade_checkpoint_pause_seconds_total"),
    *("crossfade_checkpoint_written_bytes_total", "crossfade_last_checkpoint_bytes"),
    *("crossfade_last_checkpoint_timestamp_seconds", "crossfade_checkpoint_interval_seconds"),
}
GPU = {"crossfade_gpu_memory_used_bytes", "crossfade_gpu_memory_limit_bytes"}
ROWS = {"crossfade_updated_rows_total", "crossfade_update_seconds_total", "crossfade_shard_bytes"}
JOB = {"crossfade_restarts_total", "crossfade_generation", "crossfade_job_state", "crossfade_role_up"}
HOST = {"crossfade_living_roles"}
