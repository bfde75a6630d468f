"""The image, built by a real engine: its size, user, labels and layers."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from docker_engine import CERTIFICATES, IMAGE, Engine

from crossfade.kvstore import __version__

pytestmark = pytest.mark.docker

MAX_BYTES = 1_300_000_000
HEAD_BYTES = 1 << 20
FORBIDDEN = (
    *("var/lib/apt/lists", "var/cache/apt", "root/.cache", "home/crossfade/.cache", "tmp", "run", "src"),
    *("runs", "secrets", "opt/crossfade/bin/pip", "opt/crossfade/bin/pytest"),
)
"""Paths below which no layer may have a file."""
WRITABLE = ("/data", "/home/crossfade", "/run/lock", "/runs", "/secrets/grafana", "/secrets/job", "/secrets/s3")
WRITABLE += ("/secrets/view", "/tmp", "/var/cache/crossfade", "/var/tmp")


def files_of_layers(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """Yield path and first bytes of each nonempty file in all layers, also of files that later layers hide."""
    with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE, env=engine.environment) as saved:
        assert saved.stdout is not None
        with tarfile.open(fileobj=saved.stdout, mode="r|") as blobs:
            for blob in blobs:
                if (content := blobs.extractfile(blob)) is not None:
                    try:
                        yield from _files(content)
                    except tarfile.ReadError:
                        continue  # a manifest, not a layer
        assert saved.wait() == 0


def _files(layer: object) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=layer, mode="r|*") as members:  # type: ignore[call-overload]
        for member in members:
            # Such names are whiteouts: they mark files of an earlier layer as deleted.
            if member.isreg() and member.size and not PurePosixPath(member.name).name.startswith(".wh."):
                yield member.name.removeprefix("./"), members.extractfile(member).read(HEAD_BYTES)


def test_image_is_small_labeled_and_unprivileged(engine: Engine) -> None:
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
    writable = engine.run("docker", *run, "--entrypoint", "find", IMAGE, *search, check=False).stdout
    assert sorted(writable.split()) == sorted(WRITABLE)


def certificates_in(bundle: bytes) -> set[bytes]:
    return {certificate.strip() for certificate in bundle.split(b"-----END CERTIFICATE-----")} - {b""}


def test_layers_hold_no_caches_secrets_or_build_tools(engine: Engine) -> None:
    cat_bundle = ("run", "--rm", "--network", "none", "--entrypoint", "cat", IMAGE, f"{CERTIFICATES}")
    debian = certificates_in(engine.docker(*cat_bundle).encode())
    # Behind a proxy that intercepts TLS, the build gets certificates that Debian does not have.
    private = certificates_in(CERTIFICATES.read_bytes()) - debian
    names = set()
    for name, content in files_of_layers(engine):
        names.add(PurePosixPath(name))
        assert not any(certificate in content for certificate in private), name
    assert PurePosixPath("opt/crossfade/bin/crossfade") in names
    for forbidden in FORBIDDEN:
        assert [name for name in names if name.is_relative_to(forbidden)] == []
    assert not {name.name for name in names} & {".git", ".env", "token", "aws", "ca.crt"}
    history = engine.docker("history", "--no-trunc", "--format", "{{json .}}", IMAGE)
    steps = [json.loads(line)["CreatedBy"] for line in history.splitlines()]
    assert not any("AWS_" in step or "TOKEN" in step or "proxy" in step.lower() for step in steps)
