"""The image, built by a real engine: what is in it, who runs in it, and what is not in any of its layers."""

import pytest
from docker_engine import IMAGE, Engine

from kvstore import __version__

pytestmark = pytest.mark.docker

LARGEST_BYTES = 1_300_000_000
READ_BYTES = 1 << 20
UNWANTED = (
    *("var/lib/apt/lists", "var/cache/apt", "root/.cache", "home/crossfade/.cache", "tmp", "run", "src"),
    *("runs", "secrets", "opt/crossfade/bin/pip", "opt/crossfade/bin/pytest"),
)
"""What has no file in any layer."""
WRITABLE = ("/home/crossfade", "/run/lock", "/runs", "/secrets/grafana", "/secrets/job", "/secrets/s3")
WRITABLE += ("/tmp", "/var/cache/crossfade", "/var/tmp")


def test_it_is_small_unprivileged_and_says_what_it_is(engine: Engine) -> None:
    image = engine.inspect(IMAGE)
    print(f"{IMAGE}: {image['Size'] / 1e6:,.0f} MB")
    assert image["Size"] < LARGEST_BYTES
    config = image["Config"]
    assert config["User"] == "crossfade"
    assert config["Labels"] == {
        "crossfade.variant": "cpu",
        "org.opencontainers.image.title": "Crossfade",
        "org.opencontainers.image.description": "Trains embeddings of customers and music with row-sparse updates",
        "org.opencontainers.image.licenses": "Apache-2.0",
    }
    assert "healthz" in config["Healthcheck"]["Test"][-1]
    run = ("run", "--rm", "--network", "none")
    assert engine.docker(*run, "--entrypoint", "id", IMAGE, "-u") == "10001"
    assert engine.docker(*run, IMAGE, "--version") == f"crossfade {__version__}"
    search = ("/", "-xdev", "-type", "d", "-writable", "-not", "-path", "/proc/*", "-not", "-path", "/dev*")
    found = engine.run("docker", *run, "--entrypoint", "find", IMAGE, *search, check=False).stdout
    assert sorted(found.split()) == sorted(WRITABLE)
