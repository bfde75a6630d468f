"""The plan that ``crossfade plan`` prints, whether a job fits, and the advice if it does not."""

import re
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted

from crossfade.base import machine as machine_module
from crossfade.base.errors import InputError
from crossfade.base.machine import Machine
from crossfade.cli.main import make_parser
from crossfade.deploy.capacity.plan import check_fit, check_fits_this_machine, format_gib, plan_capacity
from crossfade.deploy.capacity.plan_inputs import read_inputs
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import write_synthetic

ON_SERVERS = ("cluster.servers=2", "cluster.workers=2")
IN_WORKERS = ("cluster.store=sharded", "cluster.workers=2")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Write a job, ``job.yaml``, on a small dataset."""
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"))


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what the command prints about a job that fits."""
    parsed = make_parser().parse_args(["plan", *map(str, arguments)])
    assert parsed.run(parsed) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_printed_plan_names_every_process_and_its_memory(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = planned(capsys, planted, "--servers", 2, "--workers", 2, "--hosts", 2)
    assert "planted: 2 servers, 2 workers, 2 hosts" in printed
    for line in ("scheduler ", "server-0 to 1, each ", "worker-0 to 1, each ", "host 1: train, server-1, worker-1 "):
        assert f"\n{line}" in printed
    assert "\nFITS: the fullest host needs " in printed
    assert {path.name for path in tmp_path.iterdir()} == {"data", "job.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hosts", 2), "2 hosts need servers, or several workers, that hold the tables"),
        (("--set", "data.path=none"), "no such file; expected a folder written by 'crossfade prepare"),
    ],
)
def test_invalid_options_are_rejected(planted: Path, arguments: tuple[object, ...], message: str) -> None:
    parsed = make_parser().parse_args(["plan", str(planted), *map(str, arguments)])
    with pytest.raises(InputError, match=re.escape(message)):
        parsed.run(parsed)


@pytest.mark.parametrize("settings", [(), ON_SERVERS, IN_WORKERS], ids=["in process", "on servers", "in workers"])
def test_job_is_refused_below_its_required_bytes_and_warned_of_below_its_peak(
    planted: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    inputs = read_inputs(load_job(planted, [*settings, "checkpoint.interval_steps=5", "model.dim=65536"]))
    plan = plan_capacity(inputs)
    for available, warned in ((plan.peak_bytes, False), (plan.peak_bytes - 1, True), (plan.required_bytes, True)):
        monkeypatch.setattr(machine_module, "available_bytes", lambda: available)  # noqa: B023 - called before it changes
        warning = check_fits_this_machine(inputs)
        assert (warning is not None) == warned
    peak, free = format_gib(plan.peak_bytes), format_gib(plan.required_bytes)
    assert f"this may take up to {peak}, but {free} are free here" in str(warning)
    monkeypatch.setattr(machine_module, "available_bytes", lambda: plan.required_bytes - 1)
    with pytest.raises(InputError, match=f"all processes of a host {free}, but "):
        check_fits_this_machine(inputs)


@pytest.mark.parametrize("kind", ["server", "worker"])
def test_each_advice_makes_the_job_fit_and_is_minimal(tmp_path: Path, kind: str) -> None:
    spec = SyntheticSpec(queries=4_000, items=3_000, interactions=20_000, valid=0, test=0)
    write_synthetic(tmp_path / "data", spec, seed=3)
    path = write_job(
        tmp_path / "job.yaml",
        tmp_path / "data",
        model={"dim": 65_536, "initialization": "random"},
        optimizer={"kind": "adam"},
        negatives={"count": 8},
        train={"batch_size": 10, "save_embeddings": "none"},
        cluster={"servers": 1, "max_key_bytes": 2**26} if kind == "server" else {"store": "sharded", "workers": 2},
    )
    inputs, machine = read_inputs(load_job(path)), Machine("a machine", 2**32)
    fit = check_fit(inputs, plan_capacity(inputs), machine)
    assert fit.verdict == "does not fit"
    dim, optimizer, hosts = fit.advice
    assert dim.startswith("lower model.dim to ")
    assert optimizer == "set optimizer.kind to rowwise_adagrad"
    lower, few = int(dim.split()[-1]), int(hosts.removeprefix("use ").split()[0])
    assert f"with a {kind} each (cluster.hosts, cluster.{kind}s)" in hosts

    def verdict(*settings: str) -> str:
        other = inputs.with_job(load_job(path, settings))
        return check_fit(other, plan_capacity(other), machine).verdict

    assert verdict(f"model.dim={lower}") == "fits"
    assert verdict(f"model.dim={2 * lower}") != "fits"
    assert verdict("optimizer.kind=rowwise_adagrad") == "fits"
    assert verdict(f"cluster.hosts={few}", f"cluster.{kind}s={few}") == "fits"
    assert verdict(f"cluster.hosts={few - 1}", f"cluster.{kind}s={max(2, few - 1)}") != "fits"
    tiny = read_inputs(load_job(path, ["optimizer.kind=sgd"]))
    assert check_fit(tiny, plan_capacity(tiny), Machine("a tiny machine", 2**20)).advice == ()
