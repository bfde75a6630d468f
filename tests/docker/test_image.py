"""The image, built by a real engine: its size, user, labels and layers, and a job in its variant without MXNet."""

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
MXNET_BYTES = 150_000_000
"""What the variant without MXNet is smaller by, at least."""
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


TRAINING = """
crossfade synthesize --queries 300 --items 200 --interactions 20000 --out /runs/data >&2
echo '{name: plays, data: {path: /runs/data}, train: {epochs: 1}}' > /tmp/job.yaml
crossfade train /tmp/job.yaml --workers 2 --run-dir /runs/plays >&2
cat /runs/plays/report.json
"""


def test_slim_image_without_mxnet_is_smaller_and_trains_on_workers_that_hold_the_tables(engine: Engine) -> None:
    slim = engine.build_variant("slim")
    image, size = engine.inspect(slim), engine.inspect(IMAGE)["Size"]
    print(f"{slim}: {image['Size'] / 1e6:,.0f} MB; {IMAGE}: {size / 1e6:,.0f} MB")
    assert image["Size"] < size - MXNET_BYTES
    assert image["Config"]["Labels"]["crossfade.variant"] == "slim"
    run = ("run", "--rm", "--network", "none", "--entrypoint", "sh", slim, "-ec")
    report = json.loads(engine.docker(*run, TRAINING))
    assert (report["store"], report["servers"], report["workers"]) == ("ShardedStore", 0, 2)
    assert "mxnet" not in report["versions"]
    servers = TRAINING.replace("--workers 2", "--workers 2 --servers 2 --set cluster.store=mxnet")
    rejected = engine.run("docker", *run, servers, check=False)
    assert (rejected.returncode, "needs the package 'mxnet'" in rejected.stderr) == (2, True), rejected.stderr
