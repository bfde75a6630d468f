"""Check that a job can run here, before anything is written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.deploy.capacity.plan_inputs import PlanInputs
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.data.reporter import ProgressReporter
    from crossfade.trainer.runs.run_folder import RunFolder

_logger = logging.getLogger(__name__)


def check_runnable(job: JobConfig, folder: RunFolder, progress: ProgressReporter, *, resume: bool) -> PlanInputs:
    """Reject a job that cannot run here, before an earlier run is touched; return its inputs, and the resolved job.

    Raises:
        InputError: the dataset, the options, or the machine do not fit the job.
    """
    from crossfade.deploy.capacity.plan import check_fits_this_machine
    from crossfade.deploy.capacity.plan_inputs import read_inputs
    from crossfade.trainer.data.vocabulary import check_vocabularies
    from crossfade.trainer.runs.ownership import check_claimable

    inputs = read_inputs(job, progress)
    job = inputs.job
    check_vocabularies(inputs.folder, inputs.manifest)
    if warning := check_fits_this_machine(inputs):
        _logger.warning(warning)
    _check_runtime(job)
    if job.checkpoint.warm_start_from is not None:
        from crossfade.trainer.training.restore import open_warm_start

        open_warm_start(job, inputs.model, inputs.manifest)
    if resume:
        # Before the check below, which would create the folder of a disk that is not mounted.
        _check_resumable(inputs, folder)
    if job.checkpoint.path is not None and not folder.contains(job.checkpoint.path):
        # A new run owns none of the checkpoints that may be there; only a resumed run does.
        run_id = folder.run_id() if resume and folder.has_run_id() else None
        check_claimable(job.checkpoint.path, run_id, job.name, take_over=resume)
    if resume and not folder.has_run_id():
        _logger.info(f"{folder.path}: there is no run to resume, so a new one starts")
    return inputs


def _check_resumable(inputs: PlanInputs, folder: RunFolder) -> None:
    """Reject a run whose files cannot be read, whose checkpoints are lost, or whose dataset has changed."""
    from crossfade.base.errors import CheckpointError, InputError
    from crossfade.trainer.data.manifest import data_fingerprint
    from crossfade.trainer.runs.resumption import check_same_data, find_start, last_saved_step
    from crossfade.trainer.runs.run_folder import JOB_FILE

    job = inputs.job
    folder.check_readable()
    if folder.has_run_id() and (folder.path / JOB_FILE).exists():
        before, now = folder.job().values(), job.values()
        dense_key = ["model.dense.learning_rate"] if job.model.has_dense_layers else []
        for key in ("optimizer.learning_rate", *dense_key):
            if now[key] != before[key]:
                _logger.warning(f"{key} was {before[key]:g} and is {now[key]:g} from here on")
    checkpoints = folder.checkpoints(job)
    try:
        start, _ = find_start(checkpoints, saved_step=last_saved_step(folder.path))
    except CheckpointError as error:
        raise InputError(f"checkpoint.path: {checkpoints} cannot be read: {error.__cause__ or error}") from error
    if start is not None:
        check_same_data(start, job.with_absolute_paths().data.path, data_fingerprint(inputs.folder))


def _check_runtime(job: JobConfig) -> None:
    """Reject a job whose packages or GPUs are missing, or whose hosts and ports do not fit this machine."""
    from crossfade.deploy.cluster.store_choice import require_store
    from crossfade.trainer.tracking.tracker import check_tracking

    check_tracking(job)
    if job.train.engine == "torch":
        from crossfade.kvstore.torch.device import require_torch

        require_torch()
    if job.train.engine == "mxnet":
        from crossfade.kvstore.mxnet.imports import require_mxnet

        require_mxnet()
    require_store(job)
    if job.train.on_gpu and not job.cluster.is_distributed:
        from crossfade.trainer.model.engines.engine import choose_engine

        choose_engine(job.train)
    if job.cluster.is_distributed:
        from crossfade.deploy.cluster.supervision import check_hosts

        check_hosts(job.cluster)
