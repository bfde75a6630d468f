"""The section of ``make bench`` on servers and workers: its page, its limits of links and cores, and their absence."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from needs import root
from net_hosts import network, unavailable
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from suite import cpu_quota, two_hosts  # noqa: E402
from suite.cpu_quota import cpu_groups  # noqa: E402
from suite.page import PAGE, render  # noqa: E402
from suite.plan import FULL  # noqa: E402
from suite.processes import MeasurementError, background, wait_while  # noqa: E402
from suite.results import Result, Results  # noqa: E402
from suite.slow_workers import worker_processes  # noqa: E402
from suite.targets import all_targets  # noqa: E402
from suite.training import train_command  # noqa: E402

SPIN = "while True: pass"


def entry(name: str, **values: Any) -> dict[str, Any]:
    """Return a measurement of the section."""
    key, common = f"cluster/{name}", {"repeat": 0, "commit": "abc", "load": 0.5, "date": "2026-11-27"}
    return {"key": key, "values": values, **common}


def record_of(*measurements: dict[str, Any]) -> dict[str, Any]:
    """Return a record at the full scale."""
    machine = {"processor": "EPYC", "cores": 2, "memory_gib": 24.0, "system": "Linux", "virtual": True}
    facts = {"scale": "full", "commit": "abc", "date": "2026-11-27", "command": "make bench", "versions": {}}
    return {**facts, "machine": machine, "measurements": list(measurements)}


def cluster_record() -> dict[str, Any]:
    """Return a record in which one bandwidth failed."""
    link = {"bytes_pulled": 12e6, "bytes_pushed": 11e6}
    slow = {"worker_cpu_share": 0.245, "throttled_share": 0.99, "step_ms": 400.0, "phases_ms": {}}
    phases = {"pull": 20.0, "gradients": 370.0, "push": 10.0}
    return record_of(
        entry("processes/2-8", step_ms=60.0, triples_per_second=273e3),
        entry("bandwidth/0", step_ms=40.0, link_gbits=30.0, **link),
        entry("bandwidth/10", step_ms=46.5, link_gbits=9.5, **link),
        {**entry("bandwidth/1"), "error": "tc is not installed"},
        entry("quarter-cores/1", triples_per_second=10e3, **{**slow, "phases_ms": phases}),
        entry("quarter-cores/4", triples_per_second=37e3, **{**slow, "phases_ms": phases}),
        entry("processes/0-8", step_ms=30.0, triples_per_second=546e3),
        entry("sharded-bandwidth/0", step_ms=20.0, link_gbits=30.0, **link),
        entry("sharded-bandwidth/10", step_ms=24.0, link_gbits=9.5, **link),
        *(
            entry(f"sharded-quarter-cores/{loss}/{workers}", triples_per_second=rate, **{**slow, "phases_ms": phases})
            for loss, workers, rate in (("bpr", 1, 10e3), ("bpr", 4, 30e3), ("softmax", 1, 5e3), ("softmax", 4, 17e3))
        ),
    )


def test_page_has_processes_bandwidths_and_slow_workers() -> None:
    files = render(cluster_record())
    page = files[PAGE]
    assert "| workers | 8 | 60.0 | 273 |" in page
    assert "| dist_sync | unlimited | 30.0 | 40.0 | 12.0 | 11.0 |  |" in page
    assert "| dist_sync | 10 Gbit/s | 9.50 | 46.5 | 12.0 | 11.0 | 6.50 |" in page
    assert "| dist_sync | 1 Gbit/s | failed, see below |" in page
    assert "| `cluster/bandwidth/1` | tc is not installed |" in page
    assert "| dist_sync, softmax | 4 | 400.0 | 20.0 | 370.0 | 10.0 | 37.0 | 3.70 | 0.24 | 0.99 |" in page
    assert "| four workers over one, gradients the bottleneck | ≥ 3.50 | 3.70 | met |" in page
    assert "performance-bandwidth.svg" in files


def test_page_has_workers_that_hold_the_tables_beside_servers() -> None:
    files = render(cluster_record())
    page = files[PAGE]
    assert "| workers that hold the tables | 8 | 30.0 | 546 |" in page
    assert "| sharded | unlimited | 30.0 | 20.0 | 12.0 | 11.0 |  |" in page
    assert "| sharded | 10 Gbit/s | 9.50 | 24.0 | 12.0 | 11.0 | 4.00 |" in page
    assert "| sharded, bpr | 4 | 400.0 | 20.0 | 370.0 | 10.0 | 30.0 | 3.00 | 0.24 | 0.99 |" in page
    assert "| sharded, four workers over one, slow workers, bpr | ≥ 3.20 | 3.00 | missed |" in page
    assert "| sharded, four workers over one, slow workers, softmax | ≥ 3.20 | 3.40 | met |" in page
    assert "sharded" in files["performance-bandwidth.svg"]


def test_distributed_rates_are_over_every_variant_of_torchrec_and_over_servers() -> None:
    rates = {"sharded": 1500e3, "crossfade": 750e3, "torchrec-row": 500e3, "torchrec-row-pipelined": 600e3}
    measured = [
        {**entry("", triples_per_second=rate, rows_per_second=2 * rate), "key": f"distributed/zipf/{name}"}
        for name, rate in rates.items()
    ]
    page = render(record_of(*measured))[PAGE]
    assert "| sharded over TorchRec's best plan, zipf | ≥ 2.00 | 2.50 | met |" in page
    assert "| sharded over dist_sync, zipf | ≥ 1.80 | 2.00 | met |" in page
    assert "| dist_sync over TorchRec's best plan, zipf | ≥ 2.00 | 1.25 | missed |" in page
    row = "| TorchRec, 2 ranks, row-wise, pipelined | not measured |  |  |  | 600 | 600 to 600 | 2.50 | 1.25 |"
    assert row in page


def test_measurements_name_their_store(tmp_path: Path) -> None:
    servers = train_command({}, tmp_path / "run", servers=2, workers=2)
    assert servers[-6:] == ["--servers", "2", "--workers", "2", "--set", "cluster.store=mxnet"]
    held = train_command({}, tmp_path / "run", servers=0, workers=2)
    assert held[-6:] == ["--servers", "0", "--workers", "2", "--set", "cluster.store=sharded"]
    assert train_command({}, tmp_path / "run", servers=0, workers=1)[-1] == "--overwrite"


def test_growth_of_each_store_has_a_target() -> None:
    steps = {"servers/1000000": 40.0, "servers/64000000": 52.0, "sharded/1000000": 20.0, "sharded/64000000": 24.0}
    measured = [{**entry("", step_ms=step), "key": f"growth/{name}"} for name, step in steps.items()]
    page, targets = render(record_of(*measured))[PAGE], [target.text for target in all_targets(FULL)]
    for where, result in (
        ("on 2 servers with 2 workers", "1.30 | missed"),
        ("on 2 workers that hold the tables", "1.20 | met"),
    ):
        text = f"time of a step {where}, 64,000,000 rows over 1,000,000"
        assert f"| {text} | ≤ 1.25 | {result} |" in page
        assert text in targets


def test_differences_are_those_of_the_same_repeat() -> None:
    steps = {("a", 0): 5.0, ("a", 1): 7.0, ("b", 1): 4.0}
    results = Results(Result(key, repeat, "abc", {"step_ms": value}) for (key, repeat), value in steps.items())
    assert results.differences("a", "b", "step_ms") == [3.0]


@pytest.mark.slow
def test_process_in_a_group_gets_its_share_of_a_core() -> None:
    with psutil.Popen([sys.executable, "-c", SPIN]) as process:
        try:
            folders = spin_in_group(process)
        except MeasurementError as error:
            pytest.skip(root(error))
        finally:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert [folder.exists() for folder in folders] == [False, False]


def spin_in_group(process: psutil.Popen) -> list[Path]:
    """Assert that ``process`` uses no more than its quota; return the folders of the groups, one of them empty."""
    with cpu_groups(2, share=0.25) as groups:
        groups[0].add(process.pid)
        began, used, periods = time.monotonic(), process.cpu_times(), groups[0].periods()
        wait_until(lambda: groups[0].periods()[0] >= periods[0] + 100, "100 periods of 10 ms")
        spent = process.cpu_times().user + process.cpu_times().system - used.user - used.system
        assert spent <= 0.3 * (time.monotonic() - began) + 0.02
        assert groups[0].throttled_share(periods) > 0
        process.kill()
        process.wait()
    return [group.folder for group in groups]


def test_groups_are_removed_after_a_failure() -> None:
    try:
        with cpu_groups(1, share=0.25) as groups:
            folder = groups[0].folder
            assert folder.exists()
            raise ValueError
    except MeasurementError as error:
        pytest.skip(root(error))
    except ValueError:
        assert not folder.exists()


def test_measurement_fails_with_reason_without_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quota, "MOUNTS", tmp_path / "mounts")
    with pytest.raises(MeasurementError, match="no CPU cgroups are mounted"), cpu_groups(1, share=0.25):
        pass
    (tmp_path / "mounts").write_text(f"cgroup {tmp_path / 'absent'} cgroup rw,cpu 0 0\n")
    with pytest.raises(MeasurementError, match="CPU cgroups cannot be created"), cpu_groups(1, share=0.25):
        pass


def test_measurement_fails_with_reason_without_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_hosts, "unavailable", lambda: "network namespaces require root")
    with pytest.raises(MeasurementError, match="network namespaces require root"):
        two_hosts.train_on_two_hosts({}, tmp_path / "run", 1)


@pytest.mark.slow
def test_limited_link_moves_what_its_limit_allows() -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    with network(2) as hosts:
        free = two_hosts.link_gbits(hosts)
        for host in hosts:
            host.limit_link(0.2)
        limited = two_hosts.link_gbits(hosts), two_hosts.link_gbits(hosts[::-1])
    assert free > 0.5
    assert all(0.1 < gbits < 0.2 * two_hosts.TOLERANCE for gbits in limited)


def test_background_command_ends_with_its_block(tmp_path: Path) -> None:
    with background([sys.executable, "-c", SPIN], tmp_path / "log") as command:
        process = psutil.Process(command.process.pid)
        assert worker_processes(process.pid) == []
        with pytest.raises(MeasurementError, match="longer than 0 s"):
            wait_while(lambda: True, 0, command)
    assert not process.is_running()


def test_failure_of_a_background_command_ends_the_wait(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no such job')"]
    with background(failing, tmp_path / "log") as command, pytest.raises(MeasurementError, match="1: no such job"):
        wait_while(lambda: True, 60, command)
