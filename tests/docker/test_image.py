"""The image, built by a real engine: what is in it, who runs in it, and what is not in any of its layers."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from docker_engine import CERTIFICATES, IMAGE, Engine

from kvstore import __version__

pytestmark = pytest.mark.docker

MAX_BYTES = 1_300_000_000
READ_BYTES = 1 << 20
UNWANTED = (
    *("var/lib/apt/lists", "var/cache/apt", "root/.cache", "home/crossfade/.cache", "tmp", "run", "src"),
    *("runs", "secrets", "opt/crossfade/bin/pip", "opt/crossfade/bin/pytest"),
)
"""What has no file in any layer."""
WRITABLE = ("/home/crossfade", "/run/lock", "/runs", "/secrets/grafana", "/secrets/job", "/secrets/s3")
WRITABLE += ("/tmp", "/var/cache/crossfade", "/var/tmp")


def files_of_layers(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """The files of all layers that are not empty, also those that a later one hides: path, and how each begins."""
    with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE, env=engine.environment) as saved:
        assert saved.stdout is not None
        with tarfile.open(fileobj=saved.stdout, mode="r|") as blobs:
            for blob in blobs:
                if (content := blobs.extractfile(blob)) is not None:
                    try:
                        yield from _files(content)
                    except tarfile.ReadError:
                        continue  # it is a manifest
        assert saved.wait() == 0


def _files(layer: object) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=layer, mode="r|*") as members:  # type: ignore[call-overload]
        for member in members:
            # Names that begin so mark what an earlier layer has and this one has not.
            if member.isreg() and member.size and not PurePosixPath(member.name).name.startswith(".wh."):
                yield member.name.removeprefix("./"), members.extractfile(member).read(READ_BYTES)


def test_it_is_small_unprivileged_and_says_what_it_is(engine: Engine) -> None:
    image = engine.inspect(IMAGE)
    print(f"{IMAGE}: {image['Size'] / 1e6:,.0f} MB")
    assert image["Size"] < MAX_BYTES
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


def test_no_layer_holds_a_cache_a_secret_or_what_is_not_of_the_product(engine: Engine) -> None:
    bundle = ("run", "--rm", "--network", "none", "--entrypoint", "cat", IMAGE, f"{CERTIFICATES}")
    debian = {one.strip() for one in engine.docker(*bundle).encode().split(b"-----END CERTIFICATE-----")}
    # Where a proxy opens TLS, the build was given certificates that Debian does not have.
    given = [one.strip() for one in CERTIFICATES.read_bytes().split(b"-----END CERTIFICATE-----")]
    own = [one for one in given if one and one not in debian]
    names = set()
    for name, content in files_of_layers(engine):
        names.add(PurePosixPath(name))
        assert not any(one in content for one in own), name
    assert PurePosixPath("opt/crossfade/bin/crossfade") in names
    for unwanted in UNWANTED:
        assert [name for name in names if name.is_relative_to(unwanted)] == []
    assert not {name.name for name in names} & {".git", ".env", "token", "aws", "ca.crt"}
    history = engine.docker("history", "--no-trunc", "--format", "{{json .}}", IMAGE)
    steps = [json.loads(line)["CreatedBy"] for line in history.splitlines()]
    assert not any("AWS_" in step or "TOKEN" in step or "proxy" in step.lower() for step in steps)
