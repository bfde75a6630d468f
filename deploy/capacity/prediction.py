"""Predict what a job needs of its hosts and their network, and how long a step takes: what ``crossfade plan`` reports.

prediction = predict(PlanOptions.of(job="jobs/lastfm.yaml", servers=2), progress)
prediction.fit.verdict, prediction.time.step_seconds
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crossfade.base.errors import InputError
from crossfade.base.machine import Machine, this_machine, usable_cores
from crossfade.deploy.aws.accelerators import sizes_on_instances
from crossfade.deploy.aws.instance_types import InstanceType, find_instance
from crossfade.deploy.capacity.options import PlannedJob
from crossfade.deploy.capacity.plan import CapacityPlan, Fit, check_fit, plan_capacity, role_hosts
from crossfade.deploy.capacity.plan_inputs import PlanInputs, expected_inputs, read_inputs
from crossfade.deploy.capacity.process_memory import evaluated_queries
from crossfade.deploy.capacity.stages import Hosts, Stage, Work, plan_stages
from crossfade.deploy.capacity.step_time import evaluation_seconds, step_seconds
from crossfade.deploy.capacity.traffic import busiest_bytes
from crossfade.deploy.cluster.store_choice import choose_store
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.reporter import ProgressReporter

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """The network time of a step; with ``own_hosts``, assuming that each role has its own host."""

    bits_per_second: float | None
    busiest_bytes: float
    own_hosts: bool

    @property
    def seconds(self) -> float | None:
        """Return the seconds of a step on the busiest card; None if the bandwidth is unknown."""
        return self.busiest_bytes * 8 / self.bits_per_second if self.bits_per_second else None


@dataclass(frozen=True)
class StepTime:
    """The predicted time of a step, of an epoch, and of the evaluation of ``evaluated_queries`` after an epoch.

    Hosts have ``cores`` virtual CPUs.
    """

    cores: int
    step_seconds: float
    examples_per_second: float
    epoch_seconds: float
    evaluated_queries: int
    evaluation_seconds: float


@dataclass(frozen=True)
class Prediction:
    """The plan of a job, whether it fits, and its network and time where they are known."""

    inputs: PlanInputs
    plan: CapacityPlan
    fit: Fit
    instance: InstanceType | None
    network: Network | None
    time: StepTime | None
    hosts: Hosts
    stages: Sequence[Stage]

    def to_json(self) -> dict[str, Any]:
        """Return what is predicted, as JSON has it."""
        plan = self.plan
        data = {"job": self.inputs.job.name, **asdict(plan)}
        for process, described in zip(plan.processes, data["processes"], strict=True):
            described |= {"required_bytes": process.required_bytes, "peak_bytes": process.peak_bytes}
        if plan.traffic is not None:
            data["traffic"]["rows"] = sum(plan.traffic.rows)
            data["traffic"]["bound"] = plan.traffic.bound
        data["fit"] = asdict(self.fit)
        data["network"] = {**asdict(self.network), "seconds": self.network.seconds} if self.network else None
        data["time"] = asdict(self.time) if self.time else None
        data["stages"] = [asdict(stage) for stage in self.stages]
        return data


def predict(options: PlannedJob, progress: ProgressReporter) -> Prediction:
    """Return what the job needs; nothing is started, and the vocabularies of the dataset are read once.

    Without MXNet here, the workers hold the tables, as ``crossfade train`` runs it on this machine.

    Raises:
        InputError: the job, an option or the dataset is invalid.
    """
    job = options.load_job()
    instance = find_instance(options.instance_type) if options.instance_type else None
    if instance is not None:
        sizes_on_instances(job.cluster, instance.name, job.cluster.host_count)
    job = check_hosts(choose_store(job, _logger.info))
    size = options.expected_size
    inputs = read_inputs(job, progress).with_counts() if size is None else expected_inputs(job, *size)
    plan = plan_capacity(inputs)
    machine = Machine(instance.name, instance.usable_bytes) if instance else this_machine()
    network = _network(job, plan, options.bandwidth or (instance.bits_per_second if instance else None))
    cores = options.cores or (instance.vcpus if instance else usable_cores())
    time = _step_time(inputs, plan, network, cores)
    hosts = Hosts(job.cluster.host_count, cores, machine.available_bytes)
    stages = plan_stages(_work(inputs, plan, time), hosts) if time else []
    return Prediction(inputs, plan, check_fit(inputs, plan, machine), instance, network, time, hosts, stages)


def _work(inputs: PlanInputs, plan: CapacityPlan, time: StepTime) -> Work:
    """Return the size of the job's stages; interactions stand for raw events, of which there may be more."""
    job, train, queries = inputs.job, inputs.job.train, inputs.model.query.rows
    evaluations = train.epochs // train.eval_every_epochs if train.eval_every_epochs else 0
    size = job.evaluate.queries_of("test")
    return Work(
        queries=queries,
        items=inputs.model.item.rows,
        events=float(sum(split.rows for split in inputs.manifest.splits.values())),
        dim=job.model.dim,
        epochs=train.epochs,
        train_seconds=train.epochs * time.epoch_seconds + evaluations * time.evaluation_seconds,
        train_bytes=plan.peak_bytes,
        evaluated_queries=queries if size is None else min(queries, size),
    )


def check_hosts(job: JobConfig) -> JobConfig:
    """Return ``job``, whose hosts have something to do.

    Raises:
        InputError: it has several hosts for one process.
    """
    if job.cluster.hosts > 1 and not job.cluster.is_distributed:
        raise InputError(
            f"{job.cluster.hosts} hosts need servers, or several workers, that hold the tables: set cluster.servers or "
            "cluster.workers"
        )
    return job


def _network(job: JobConfig, plan: CapacityPlan, bandwidth: float | None) -> Network | None:
    hosts = role_hosts(job)
    if not hosts or plan.traffic is None:
        return None
    if own_hosts := len(hosts) == 1:
        hosts = [[role] for role in hosts[0]]
    return Network(bandwidth, busiest_bytes(plan.traffic, hosts), own_hosts)


def _step_time(inputs: PlanInputs, plan: CapacityPlan, network: Network | None, cores: int) -> StepTime | None:
    """Predict the time of a step; None where nothing is known about the engine or the network between hosts."""
    job = inputs.job
    wire_seconds = 0.0 if network is None or network.own_hosts else network.seconds
    if plan.traffic is None or not job.train.uses_cpu_engine or wire_seconds is None:
        return None
    keys = sum(table.keys for table in plan.tables)
    seconds = step_seconds(
        plan.steps, job.model.dim, role_hosts(job), cores=cores, keys=keys, wire_seconds=wire_seconds
    )
    rate = plan.traffic.examples / seconds
    queries, items = evaluated_queries(inputs, "valid"), inputs.model.item.rows
    evaluation = evaluation_seconds(queries, items, job.model.dim, cores * job.cluster.host_count)
    return StepTime(cores, seconds, rate, inputs.selection.rows / rate, queries, evaluation)
