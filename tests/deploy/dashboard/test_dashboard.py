"""``crossfade dashboard`` in a real browser, with real runs and with synthetic ones."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESKTOP, PHONE, Visit, checked_visit
from cluster_data import write_job, write_planted
from paced_training import metrics_address, paced
from playwright.sync_api import Browser, expect
from recorded_service import make_record
from restarted_run import ShownRun
from run_folders import BEGAN, add, epoch, load, state, step, totals, training_from, write_run
from running_command import started, succeeded

from crossfade.deploy.refresh.versions import ServiceVersions

GRAPHS = ("loss", "eval_metric", "throughput")
SECONDS = 120_000
TOKEN = "a-secret-of-this-test-alone"
MARKUP = "<img src=x onerror=document.title=1>"


@contextmanager
def served(*options: object, cwd: Path) -> Iterator[str]:
    with started("dashboard", "--port", 0, *options, cwd=cwd) as page:
        assert page.process.stdout is not None
        line = page.process.stdout.readline()
        assert line.startswith("dashboard: http://127.0.0.1:"), (line, page.process.stderr)
        yield line.removeprefix("dashboard: ").strip()


@contextmanager
def opened(browser: Browser, address: str, *runs: str, service: str = "", **options: Any) -> Iterator[Visit]:
    """Open the page with ``runs`` selected."""
    query = urlencode([*(("run", run) for run in runs), *([("service", service)] if service else [])])
    password = {"username": "anybody", "password": TOKEN}
    with checked_visit(browser, f"{address}?{query}", http_credentials=password, **options) as visit:
        for run in runs:
            expect(visit.page.locator("#head h1", has_text=run).last).to_be_visible()
        yield visit


def drawn(visit: Visit, graph: str) -> list[dict[str, Any]]:
    """Return the traces of a graph, as Plotly has drawn them."""
    plotted = "document.querySelector(`#graph-${id} .js-plotly-plot`)?.data ?? []"
    script = f"id => ({plotted}).map(each => ({{name: each.name, x: each.x, y: each.y}}))"
    found: list[dict[str, Any]] = visit.page.evaluate(script, graph)
    return found


def wait_for_graph(visit: Visit, graph: str, condition: str) -> None:
    """Return once ``condition``, JavaScript of its traces ``t``, holds."""
    script = (
        f"id => {{const t = document.querySelector(`#graph-${{id}} .js-plotly-plot`)?.data ?? []; return {condition}}}"
    )
    visit.page.wait_for_function(script, arg=graph, timeout=SECONDS)


@pytest.mark.cluster
def test_run_is_shown_from_its_first_steps_through_a_restart_to_its_results(browser: Browser, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "cluster"
    run_dir.parent.mkdir()
    train = {"epochs": 16, "eval_every_epochs": 4, "patience": None}
    checkpoint = {"interval_steps": 10}
    write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), train=train, checkpoint=checkpoint)
    arguments = ("train", tmp_path / "job.yaml", "--servers", 2, "--workers", 1)
    with ExitStack() as stack:
        address = stack.enter_context(served(cwd=tmp_path))
        page = (visit := stack.enter_context(opened(browser, address))).page
        expect(page.locator("#runs")).to_contain_text("No runs yet")
        training = stack.enter_context(paced(*arguments, run_dir=run_dir, step_seconds=0.25))
        scraped = metrics_address(training)
        # The latest run is shown without a reload.
        expect(page.locator("#head h1")).to_have_text("clusterrunning")
        wait_for_graph(visit, "loss", "t.length && t[0].x.length > 1")
        before = drawn(visit, "loss")[0]["x"][-1]
        for server in ("server-0", "server-1"):
            row = page.locator("#processes tbody tr", has_text=server)
            expect(row).to_contain_text("running")
            expect(row.locator("td").nth(2)).to_have_text("250")  # of 500 rows
        training.wait_for("checkpoint_saved")
        shown = ShownRun(training, scraped)
        shown.assert_runs(dim=8)
        training.command.roles()["server-0"].kill()
        expect(page.locator("#alerts")).to_contain_text("server-0 was killed by SIGKILL")
        expect(page.locator("#head")).to_contain_text("generation 2")
        expect(page.locator("#events tbody tr", has_text="restart")).to_be_visible()
        failure = page.locator("#events tbody tr", has_text="failure")
        expect(failure).to_contain_text("was killed by SIGKILL; lost ")
        wait_for_graph(visit, "loss", f"t[0].x.at(-1) > {before}")
        shown_failure = shown.assert_restarted()
        succeeded(training.finish())
        shown.assert_done(shown_failure)
        expect(page.locator("#head h1")).to_have_text("clusterdone")
        expect(page.locator("#tiles")).to_contain_text("Restarts1")


# ---- synthetic runs


def write_plays(folder: Path, *, quality: float, rate: float, kind: str = "done") -> Path:
    metrics = [training_from(0, at=0)]
    for number in range(1, 41):
        metrics.append(step(number, at=number, loss=1 / number, steps=40))
        if number % 10 == 0:
            metrics.append(epoch(number // 10, at=number, step=number, quality=quality * number / 40))
    metrics.append(totals(40, at=40, pushed=10**6, dense=10**9))
    return write_run(
        folder,
        metrics=metrics,
        job=f"name: plays\nmodel: {{dim: 8}}\nevaluate: {{best_metric: ndcg@10}}\n"
        f"optimizer: {{learning_rate: {rate}}}\n",
        state=state(kind, at=41, in_process=("running", load(updated=4000))),
    )


LONG = MARKUP + "".join(f"run-with-a-long-name-{number}-" for number in range(7))
OLD = f"old-{'music-' * 12}"


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve runs, of which one is damaged and has markup as its name, and services, to those who have the token."""
    folder, now = tmp_path_factory.mktemp("plays"), int(time.time())
    write_plays(folder / "runs" / "one", quality=0.31, rate=0.1)
    write_plays(folder / "runs" / "two", quality=0.35, rate=0.05)
    damaged = write_plays(folder / "runs" / LONG, quality=0.2, rate=0.1, kind="failed")
    (damaged / "report.json").write_text("{")
    with (damaged / "events.jsonl").open("ab") as file:
        file.write(b"\xff\xff not a record\n")
    restart = {"generation": 2, "cause": f"{LONG} was killed", "step": 20, "lost_steps": 9, "lost_seconds": 9.0}
    add(damaged / "processes.jsonl", {"time": BEGAN, "event": "restart", **restart})
    for name, newest, status in (("music", now - 60, "rejected"), (OLD, 1_700_000_000, "published")):
        path = folder / "services" / name
        path.mkdir(parents=True)
        for number in (1, 2, 3):
            values = {"newest": newest, "status": status if number == 3 else "published", "decided": now - 90.0}
            ServiceVersions(path).write(make_record(number, **values))
        write_plays(path / "version-000002", quality=0.35, rate=0.1)
    (folder / "token").write_text(TOKEN)
    with served("--token-file", "token", cwd=folder) as address:
        assert TOKEN not in address
        yield address


CUT_OFF = """() => [...document.querySelectorAll("header *, nav *, main *")]
    .filter(each => !each.closest("svg") || each.tagName === "text")
    .filter(each => each.getClientRects().length && getComputedStyle(each).visibility !== "hidden")
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 60)}`)"""
"""JavaScript: the elements that reach beyond the right edge of the window."""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_page_is_accessible_and_fits_the_window(
    browser: Browser, synthetic: str, size: dict[str, int], scheme: str
) -> None:
    for runs in (("one", LONG), (LONG,)):
        with opened(browser, synthetic, *runs, service=OLD, size=size, color_scheme=scheme) as visit:
            page = visit.page
            for graph in GRAPHS:
                wait_for_graph(visit, graph, "t.length > 0")
            expect(page.locator("#versions tbody tr")).to_have_count(3)
            page.get_by_text(f"job.yaml of {LONG}").click()
            violations = Axe().run(page).response["violations"]
            serious = [rule for rule in violations if rule["impact"] in {"serious", "critical"}]
            assert not serious, json.dumps(serious, indent=1)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            assert size is DESKTOP or page.evaluate(CUT_OFF) == []
            expect(page.locator("#events")).to_contain_text(MARKUP)
            assert (page.locator("img[src='x']").count(), page.title()) == (0, "Crossfade")
            page.goto(f"{synthetic}explore")
            expect(page.locator("#run option", has_text=MARKUP)).to_have_count(1)
            assert page.locator("img[src='x']").count() == 0


@pytest.mark.slow
def test_service_is_shown_and_its_versions_open_as_runs(browser: Browser, synthetic: str) -> None:
    with opened(browser, synthetic) as visit:
        page = visit.page
        panel = page.locator("#service-panel")
        expect(panel.locator("h1")).to_have_text("musicrejected")
        expect(panel.locator("#service li")).to_contain_text("version 3 was rejected")
        expect(panel.locator("#versions tbody tr")).to_have_count(3)
        panel.get_by_role("link", name="2", exact=True).click()
        expect(page.locator("#head h1")).to_have_text("services/music/version-000002done")
        expect(panel.locator("h1")).to_contain_text("music")
        page.locator("#services .box", has_text="old-music").click()
        expect(panel.locator("#service li")).to_contain_text("the newest event in the served version is")
        page.wait_for_url("**&service=old-*")
        page.locator("#services .box", has_text="old-music").click()
        expect(panel).to_be_hidden()
        page.wait_for_url("**/?run=services%2Fmusic%2Fversion-000002")
