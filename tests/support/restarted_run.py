"""What ``crossfade status`` and the metrics show of a run on two servers, one of which is killed."""

import json
import os
from pathlib import Path
from typing import Any

from cluster_data import CUSTOMERS, TRACKS
from command_here import crossfade_here
from paced_training import Training
from running_command import succeeded
from scraping import ask, scrape, targets, value

from crossfade.kvstore.store import VALUE_BYTES

SERVERS = ["server-0", "server-1"]


class ShownRun:
    """A paced run on two servers and a worker, whose metrics are served at ``address``."""

    def __init__(self, training: Training, address: str) -> None:
        self._training, self._run_dir, self._address = training, training.run_dir, address
        self._scraped = targets(address)

    def status(self) -> dict[str, Any]:
        """Return what the command prints as JSON."""
        result = succeeded(crossfade_here("status", "--json", self._run_dir))
        (found,) = json.loads(result.stdout)["runs"]
        assert isinstance(found, dict)
        return found

    def assert_runs(self, dim: int) -> None:
        """Assert that both servers are shown with their rows of vectors of ``dim`` numbers."""
        self._wait_for_loads()
        processes = {row["name"]: row for row in self.status()["processes"]}
        assert [row["state"] for row in processes.values()] == ["running"] * 4
        assert processes["server-0"]["host"] == os.uname().nodename
        held = [processes[name]["rows"] for name in SERVERS]
        assert sum(held) >= CUSTOMERS + TRACKS  # ranges are of equal size
        assert held[0] == held[1]
        assert processes["server-0"]["held_bytes"] >= held[0] * dim * VALUE_BYTES

    def assert_restarted(self) -> dict[str, Any]:
        """Assert that the killed server and its successor are shown and scraped; return the failure."""
        address, wait = self._address, self._training.wait
        wait(lambda: value(scrape(address), "crossfade_restarts_total") == 1, "a restart")
        wait(lambda: len(targets(address)) == len(self._scraped), "all processes of the next generation")
        assert targets(address)["server-0"] != self._scraped["server-0"]
        assert ask(targets(address)["server-0"], "/healthz")[0] == 200
        self._wait_for_loads()
        again = self.status()
        assert (again["state"], again["generation"], len(again["restarts"])) == ("running", 2, 1)
        assert "server-0 was killed by SIGKILL" in again["restarts"][0]["cause"]
        assert any("SIGKILL" in alert["text"] for alert in again["alerts"])
        failure: dict[str, Any] = again["failure"]
        assert failure["text"] == f"server-0 on {os.uname().nodename} was killed by SIGKILL"
        assert (failure["cause"], failure["ends_run"], failure["error"]) == ("was killed by SIGKILL", False, None)
        assert failure["lost_steps"] == again["restarts"][0]["lost_steps"]
        assert Path(failure["log"]).name == "server-0.log"
        assert again["step"] < again["planned_steps"]
        return failure

    def assert_done(self, failure: dict[str, Any]) -> None:
        """Assert that the ended run still shows the failure."""
        done = self.status()
        assert (done["state"], len(done["restarts"]), done["failure"]) == ("done", 1, failure)
        assert {row["state"] for row in done["processes"]} == {"done"}

    def _wait_for_loads(self) -> None:
        def updating() -> list[str]:
            processes = json.loads((self._run_dir / "state.json").read_text())["processes"].items()
            return [name for name, process in processes if process["load"].get("updates")]

        self._training.wait(lambda: updating() == SERVERS, "the servers' loads")
