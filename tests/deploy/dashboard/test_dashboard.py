"""``crossfade dashboard`` in a real browser, with real runs and with synthetic ones."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESKTOP, PHONE, Visit, browsing, visiting
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from paced_training import metrics_address, paced
from playwright.sync_api import Browser, expect
from recorded_service import make_record
from restarted_run import ShownRun
from run_folders import add, epoch, load, sample, state, step, totals, training_from, write_run
from running_command import RunningCommand, started, succeeded

from crossfade.deploy.refresh.versions import ServiceVersions

GRAPHS = ("loss", "eval_metric", "evaluation", "throughput", "phases", "traffic", "memory", "updates")
SECONDS = 120_000
EPOCHS = 120  # long enough for several state records, which are written once a second


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        expect.set_options(timeout=SECONDS)
        yield browser


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data and a job, and train it into ``runs/first``."""
    folder = tmp_path_factory.mktemp("page")
    train = {"epochs": 60, "eval_every_epochs": 10, "patience": None}
    write_job(folder / "job.yaml", write_planted(folder / "data"), train=train, checkpoint={"interval_steps": 40})
    succeeded(
        crossfade_here("train", "job.yaml", "--run-dir", "runs/first", "--set", f"train.epochs={EPOCHS}", cwd=folder)
    )
    return folder


def address_of(page: RunningCommand) -> str:
    """Return the URL that the command prints once it serves."""
    assert page.process.stdout is not None
    line = page.process.stdout.readline()
    assert line.startswith("dashboard: http://127.0.0.1:"), (line, page.process.stderr)
    return line.removeprefix("dashboard: ").strip()


@contextmanager
def served(*runs: object, cwd: Path) -> Iterator[str]:
    with started("dashboard", *runs, "--port", 0, cwd=cwd) as page:
        yield address_of(page)


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    with served(cwd=workspace) as address:
        yield address


@contextmanager
def opened(browser: Browser, address: str, *runs: str, **options: Any) -> Iterator[Visit]:
    """Open the page with ``runs`` selected; assert at the end that it logged no errors and used no other server."""
    query = "&".join(f"run={run}" for run in runs)
    with visiting(browser, f"{address}?{query}", **options) as visit:
        for run in runs:
            expect(visit.page.locator("#head h1", has_text=run)).to_be_visible()
        yield visit
        assert visit.errors == []
        assert visit.hosts <= {address.split("/")[2]}


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


def serious_violations(visit: Visit, part: str | None = None) -> str:
    """Return the serious violations of rules of accessibility, on the page or in a part of it, as JSON."""
    violations = Axe().run(visit.page, context=part).response["violations"]
    serious = [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in violations
        if rule["impact"] in {"serious", "critical"}
    ]
    return json.dumps(serious, indent=1)


# ---- real runs


@pytest.mark.slow
def test_finished_run_has_data_in_every_graph_and_table(browser: Browser, address: str, workspace: Path) -> None:
    report = json.loads((workspace / "runs" / "first" / "report.json").read_text())
    with opened(browser, address, "first") as visit:
        page = visit.page
        for graph in GRAPHS:
            wait_for_graph(visit, graph, "t.length > 0 && t.every(each => each.x.length > 0)")
        assert drawn(visit, "traffic")[0]["x"] == [
            report[name] for name in ("bytes_pulled", "bytes_pushed", "dense_equivalent_bytes_pushed")
        ]
        assert len(drawn(visit, "eval_metric")[0]["y"]) == EPOCHS // 10
        assert len(drawn(visit, "loss")[1]["y"]) == EPOCHS
        expect(page.locator("#head")).to_contain_text(f"step {report['steps']:,} of {report['steps']:,}")
        expect(page.locator("#processes tbody tr")).to_have_count(1)
        expect(page.locator("#processes tbody tr")).to_contain_text("in-process")
        expect(page.locator("#events tbody tr").first).to_contain_text("checkpoint")
        best = report["metrics"]["test"]["ndcg@10"]
        expect(page.locator("#results")).to_contain_text(f"ndcg@10 on test is {best:.4f}")
        baselines = [found["ndcg@10"] for found in report["baselines"]["metrics"]["test"].values()]
        assert drawn(visit, "evaluation")[0]["x"] == [best, *baselines]
        page.get_by_text("job.yaml of first").click()
        expect(page.locator("#job pre")).to_have_text((workspace / "runs" / "first" / "job.yaml").read_text().rstrip())
        dense = report["dense_equivalent_bytes_pushed"] / report["bytes_pushed"]
        expect(page.locator("#tiles")).to_contain_text(f"{dense:.3g}")


@pytest.mark.cluster
def test_live_run_is_shown_from_its_first_steps_through_a_restart_to_its_end(
    browser: Browser, address: str, workspace: Path
) -> None:
    run_dir = workspace / "runs" / "cluster"
    arguments = (
        "train",
        workspace / "job.yaml",
        "--servers",
        2,
        "--workers",
        1,
        "--set",
        "optimizer.learning_rate=0.05",
        "--set",
        "train.epochs=16",
        "--set",
        "checkpoint.interval_steps=10",
    )
    with ExitStack() as stack:
        page = (visit := stack.enter_context(opened(browser, address))).page
        expect(page.locator("#head h1")).to_have_count(1)  # the page has chosen a run before there is a newer one
        training = stack.enter_context(paced(*arguments, run_dir=run_dir, step_seconds=0.25))
        scraped = metrics_address(training)
        # A new run appears without a reload.
        page.get_by_role("checkbox", name="cluster").click(timeout=120_000)
        expect(page.locator("#head h1")).to_have_count(2)
        page.get_by_role("checkbox", name="first").click()
        expect(page.locator("#head h1")).to_have_count(1)
        expect(page.locator("#head h1")).to_have_text("clusterrunning", timeout=120_000)
        wait_for_graph(visit, "loss", "t.length && t[0].x.length > 1")
        before = drawn(visit, "loss")[0]["x"][-1]
        wait_for_graph(visit, "loss", f"t[0].x.at(-1) > {before}")
        for server in ("server-0", "server-1"):
            row = page.locator("#processes tbody tr", has_text=server)
            expect(row).to_contain_text("running")
            expect(row.locator("td").nth(2)).to_have_text("250")  # of 500 rows
            expect(row.locator("td").nth(4)).not_to_have_text("\N{EN DASH}")
        training.wait_for("checkpoint_saved")
        shown = ShownRun(training, scraped)
        shown.assert_runs(dim=8)
        training.command.roles()["server-0"].kill()
        expect(page.locator("#alerts")).to_contain_text("server-0 was killed by SIGKILL")
        expect(page.locator("#head")).to_contain_text("generation 2")
        expect(page.locator("#events")).to_contain_text("restart")
        failure = page.get_by_role("region", name="Last failure of cluster").locator("tbody tr")
        expect(failure.locator("td").first).to_have_text("server-0")
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
    loads = [{"in_process": load(updated=at * 100, cpu=at / 2)} for at in range(0, 41, 10)]
    return write_run(
        folder,
        metrics=metrics,
        job=f"name: plays\nmodel: {{dim: 8}}\nevaluate: {{best_metric: ndcg@10}}\n"
        f"optimizer: {{learning_rate: {rate}}}\n",
        processes=[sample(at=10 * number, **each) for number, each in enumerate(loads)],
        state=state(kind, at=41, in_process=("running", loads[-1]["in_process"])),
    )


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plays")
    write_plays(folder / "runs" / "one", quality=0.31, rate=0.1)
    write_plays(folder / "runs" / "two", quality=0.35, rate=0.05)
    corrupt = write_plays(folder / "runs" / "corrupt", quality=0.2, rate=0.1, kind="failed")
    (corrupt / "report.json").write_text("{")
    with (corrupt / "events.jsonl").open("ab") as file:
        file.write(b"\xff\xff not a record\n")
    return folder


@pytest.fixture(scope="module")
def synthetic(plays: Path) -> Iterator[str]:
    with served("runs", cwd=plays) as address:
        yield address


@pytest.mark.slow
def test_runs_can_be_compared_by_keyboard_alone(browser: Browser, synthetic: str) -> None:
    with opened(browser, synthetic, "one") as visit:
        page = visit.page
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the run")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Explore")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#theme")).to_be_focused()
        other = page.get_by_role("checkbox", name="two")
        for _ in range(6):
            page.keyboard.press("Tab")
            if other.evaluate("box => box === document.activeElement"):
                break
        page.keyboard.press("Space")
        compared = page.get_by_role("region", name="Comparison of runs")
        expect(compared.locator("tbody tr")).to_have_count(2)
        expect(compared.locator("tbody tr").nth(1)).to_contain_text("0.3500")
        wait_for_graph(visit, "eval_metric", "t.length === 2")
        assert {trace["name"] for trace in drawn(visit, "eval_metric")} == {"one", "two"}
        differs = page.get_by_role("region", name="Differences between jobs")
        expect(differs.locator("tbody tr")).to_have_text(["optimizer.learning_rate0.10.05"])
        page.wait_for_url("**/?run=one&run=two")
        page.reload()
        expect(page.locator("#head h1")).to_have_count(2)
        page.get_by_role("button", name="by time").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="by time")).to_have_attribute("aria-pressed", "true")
        wait_for_graph(visit, "loss", "t.length && Math.abs(t[0].x.at(-1) - 40 / 60) < 1e-6")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_page_is_accessible_and_fits_the_window(
    browser: Browser, synthetic: str, size: dict[str, int], scheme: str
) -> None:
    with opened(browser, synthetic, "one", "corrupt", size=size, color_scheme=scheme) as visit:
        page = visit.page
        for graph in GRAPHS:
            wait_for_graph(visit, graph, "t.length > 0")
        page.get_by_text("job.yaml of one").click()
        assert serious_violations(visit) == "[]"
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


CUT_OFF = """() => [...document.querySelectorAll("header *, nav *, main *")]
    .filter(each => !each.closest("svg") || each.tagName === "text")
    .filter(each => each.getClientRects().length && getComputedStyle(each).visibility !== "hidden")
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => `${each.tagName} ${each.className} ${each.textContent.slice(0, 60)}`)"""
"""JavaScript: the elements that reach beyond the right edge of the window."""


@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone_even_with_long_names(browser: Browser, tmp_path: Path) -> None:
    name = "".join(f"run-with-a-long-name-{number}-" for number in range(8))
    metrics = {"valid": {f"{kind}@{k}": 0.5 for kind in ("recall", "ndcg") for k in (5, 10, 20)} | {"queries": 3}}
    for run in (name, "other"):
        folder = write_plays(tmp_path / "runs" / run, quality=0.3, rate=0.1)
        (folder / "report.json").write_text(json.dumps({"metrics": metrics, "stopped_early": True}))
        cause = "server-0 was killed by SIGKILL (exit code -9)"
        restart = {"generation": 2, "cause": cause, "step": 20, "lost_steps": 9, "lost_seconds": 9.0}
        (folder / "restarts.json").write_text(json.dumps([restart]))
    with served("runs", cwd=tmp_path) as address:
        for shown in ([name], [name, "other"]):
            with opened(browser, address, *shown, size={"width": 420, "height": 900}) as visit:
                for graph in GRAPHS:
                    wait_for_graph(visit, graph, "t.length > 0")
                visit.page.get_by_text(f"job.yaml of {name}").click()
                assert visit.page.evaluate(CUT_OFF) == []


@pytest.mark.slow
def test_run_that_does_not_exist_is_named_until_another_is_selected(browser: Browser, synthetic: str) -> None:
    with visiting(browser, f"{synthetic}?run=oen") as visit:
        notice = visit.page.locator("#missing-runs")
        expect(notice).to_contain_text("There is no run 'oen'; the latest is shown instead.")
        expect(visit.page.locator("#head h1")).to_have_count(1)
        visit.page.locator("#runs [aria-checked='false']").first.click()
        expect(notice).to_be_empty()
        expect(visit.page.locator("#head h1")).to_have_count(2)
        assert visit.errors == []


@pytest.mark.slow
def test_page_shows_new_growing_and_renamed_runs(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(cwd=tmp_path) as address, opened(browser, address) as visit:
        expect(visit.page.locator("#no-runs")).to_be_visible()
        folder = write_plays(tmp_path / "runs" / "new", quality=0.3, rate=0.1)
        expect(visit.page.locator("#head h1")).to_contain_text("new")
        expect(visit.page.locator("#no-runs")).to_be_hidden()
        add(folder / "events.jsonl", step(41, at=50, steps=90))
        expect(visit.page.locator("#head")).to_contain_text("step 41 of 90")
        folder.rename(tmp_path / "runs" / "renamed")
        expect(visit.page.locator("#head h1")).to_contain_text("renamed")
        trial = write_plays(tmp_path / "runs" / "search" / "trial-0000", quality=0.3, rate=0.1)
        visit.page.get_by_text("search: 1 trial · ndcg@10 0.3000").click()
        box = visit.page.get_by_role("checkbox", name="search/trial-0000")
        expect(box).to_be_visible()
        add(trial / "events.jsonl", epoch(5, at=50, step=50, quality=0.4))
        expect(box).to_contain_text("ndcg@10 0.4000")  # the list is built again, and the study stays open


# ---- services


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a run, a service whose last version was rejected, and one whose newest event is old, with a long name."""
    folder, now = tmp_path_factory.mktemp("services"), int(time.time())
    write_plays(folder / "runs" / "one", quality=0.31, rate=0.1)
    for name, newest, status in (("music", now - 60, "rejected"), (f"old-{'music-' * 12}", 1_700_000_000, "published")):
        path = folder / "services" / name
        path.mkdir(parents=True)
        for number in (1, 2, 3):
            values = {"newest": newest, "status": status if number == 3 else "published", "decided": now - 90.0}
            ServiceVersions(path).write(make_record(number, **values))
        write_plays(path / "version-000002", quality=0.35, rate=0.1)
    with served(cwd=folder) as address:
        yield address


@pytest.mark.slow
def test_service_is_shown_and_its_versions_open_as_runs(browser: Browser, services: str) -> None:
    with opened(browser, services) as visit:
        page = visit.page
        panel = page.locator("#service-panel")
        expect(panel.locator("h1")).to_have_text("musicrejected")
        expect(panel.locator("#service-alerts li")).to_contain_text("version 3 was rejected")
        expect(panel.locator("#service-versions tbody tr")).to_have_count(3)
        wait_for_graph(visit, "versions", "t.length === 4 && t[3].name === 'rejected' && t[3].x[0] === 3")
        drawn_width = "document.querySelector('#graph-versions .main-svg').getBoundingClientRect().width"
        page.wait_for_function(f"() => {drawn_width} > 0.9 * document.querySelector('#graph-versions').clientWidth")
        panel.get_by_role("link", name="version 2: show its run").click()
        expect(page.locator("#head h1")).to_have_text("services/music/version-000002done")
        expect(panel.locator("h1")).to_contain_text("music")
        page.locator("#services").get_by_role("checkbox", name="old-music").focus()
        page.keyboard.press("Space")
        expect(panel.locator("#service-alerts li")).to_contain_text("the newest event in the served version is")
        page.wait_for_url("**&service=old-*")
        page.keyboard.press("Space")
        expect(panel).to_be_hidden()
        page.wait_for_url("**/?run=services%2Fmusic%2Fversion-000002")


@pytest.mark.slow
def test_service_is_accessible_and_fits_a_phone(browser: Browser, services: str) -> None:
    name = f"old-{'music-' * 12}"
    with visiting(browser, f"{services}?service={name}", size=PHONE, color_scheme="light") as visit:
        wait_for_graph(visit, "versions", "t.length > 0")
        expect(visit.page.locator("#service-versions tbody tr")).to_have_count(3)
        assert serious_violations(visit, "#service-panel") == "[]"
        assert visit.page.evaluate(CUT_OFF) == []
        assert visit.errors == []
