"""End a run with what it has skipped, by reason, and how to run that: see ``needs.py`` for the reasons."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Write the lines after pytest's own summary. With xdist, only the controller has a terminal."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(session.config, "workerinput"):
        for line in lines(_reasons(reporter.stats.get("skipped", ())), session.config.option.markexpr):
            reporter.write_line(line)
    return result


def _reasons(reports: Iterable[pytest.TestReport]) -> Iterator[str]:
    """Yield the reason of each skipped test, and of each file that is skipped as a whole."""
    for report in reports:
        if isinstance(report.longrepr, tuple):
            yield report.longrepr[2].removeprefix("Skipped: ")


def lines(reasons: Iterable[str], selected: str = "") -> Iterator[str]:
    """Yield a line for each reason, without details, the most frequent first; ``selected`` is the value of ``-m``."""
    counts = Counter(reason.partition(" (")[0] for reason in reasons)
    for reason, count in counts.most_common():
        needs = f"need {reason.removeprefix('needs ')}" if count > 1 and reason.startswith("needs ") else reason
        yield f"skipped: {count:,} {needs}"
    if "not long" in selected:
        yield "not run: long tests of what few changes touch: make test-long"
    if "not docker" in selected:
        yield "not run: tests of the image and docker-compose.yml: make test-docker, as root"
