"""The output and the options of ``crossfade plan``."""

import json
import re
from pathlib import Path

import pytest

from crossfade.base.errors import InputError
from crossfade.cli.main import make_parser
from crossfade.deploy.cluster import store_choice


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


@pytest.mark.slow
def test_plan_of_workers_that_hold_the_tables_has_no_servers(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--set", "cluster.store=sharded", "--workers", 4, "--hosts", 2)
    printed = planned(capsys, planted, *shape)
    assert "planted: 4 workers, which hold the tables, 2 hosts" in printed
    for line in (
        "host 0: train, worker-0, worker-2 ",
        "  customer: weights of 75 rows ",
        "  rows sent to and received ",
    ):
        assert f"\n{line}" in printed
    assert not re.search(r"server|scheduler", printed)
    found = json.loads(planned(capsys, planted, "--json", *shape))
    assert [table["weights_bytes"] for table in found["tables"]] == [300 * 8 * 4, 200 * 8 * 4]
    assert [host["processes"] for host in found["hosts"]][1] == ["train", "worker-1", "worker-3"]
    assert found["fit"]["verdict"] == "fits"


@pytest.mark.slow
def test_without_mxnet_servers_are_planned_as_workers_that_hold_the_tables(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_choice, "find_spec", lambda _name: None)
    assert "planted: 3 workers, which hold the tables, one host" in planned(
        capsys, planted, "--servers", 2, "--workers", 3
    )


@pytest.mark.slow
def test_evaluation_follows_the_sample(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pairs_of(queries: object, final: object) -> int:
        settings = ("--set", f"evaluate.max_queries={queries}", "--set", f"evaluate.final={final}")
        found = json.loads(planned(capsys, planted, "--json", *settings))
        parts = {part["what"]: part["bytes"] for process in found["processes"] for part in process["parts"]}
        return int(parts["held-out and excluded items"])

    pairs = pairs_of("all", "all")
    assert pairs_of("auto", "auto") == pairs, "fewer queries than the least sample"
    assert pairs_of(30, 30) == pytest.approx(pairs / 10, rel=0.1)
    assert pairs_of(30, "all") == pairs, "test has more queries than valid"


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
