"""Run a private Docker engine with the images of docker-compose.yml, without a registry.

    with running_engine(folder) as engine:
        engine.build_images()
        engine.docker("ps")

Published images are replaced by stand-ins of the same name with the same software: Debian's packages, and SeaweedFS
from its wheel. All files are in ``folder``; leaving the context unmounts and deletes them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "crossfade:cpu"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""The certificates of this machine, possibly with those of a proxy."""
BUILD_SECONDS = 600
_BASE = "debian:bookworm-slim"
BUILD_OPTIONS = ("--build-arg", f"BASE_IMAGE={_BASE}", "--secret", f"id=ca,src={CERTIFICATES}")
"""Options of ``docker build``: the base image that the engine has, and the certificates for pip."""
STAND_INS = ("s3", "prometheus")
"""Services of docker-compose.yml whose published image is replaced."""
_PROGRAMS = ("dockerd", "docker", "ip", "iptables", "mmdebstrap", "setpriv")
_PLUGINS = ("compose", "buildx")
_START_SECONDS = _STOP_SECONDS = 180.0
_STAND_INS = f"""\
FROM {_BASE} AS debian
RUN apt-get update && apt-get install -y --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/*

FROM debian AS s3
COPY weed /usr/bin/weed
VOLUME /data

FROM debian AS prometheus
RUN install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


def tag_of(image: str) -> str:
    """Return ``image`` without its digest, which a stand-in cannot have."""
    return image.partition("@")[0]


def missing() -> str | None:
    """Return in one line what the Docker tests lack here, or None."""
    packages = "docker.io docker-cli docker-compose docker-buildx iproute2 iptables mmdebstrap"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if not absent:
        absent = [f"docker {name}" for name in _PLUGINS if _fails("docker", name, "version")]
    if absent:
        return f"Docker tests need {', '.join(absent)}; on Debian: apt-get install {packages}"
    if os.geteuid() != 0:
        return "Docker tests start a private engine: run them as root"
    return None


def _fails(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


class Engine:
    """A Docker engine; clients need ``environment``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bridge = f"docker{os.getpid()}"
        socket = f"unix://{folder}/docker.sock"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        self.environment = {**inherited, "DOCKER_HOST": socket, "DOCKER_CONFIG": str(folder / "config")}
        self._command = [
            *("dockerd", "--host", socket, "--pidfile", str(folder / "dockerd.pid")),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            # Without its own bridge it would use or delete that of another engine on this machine.
            *("--bridge", self._bridge),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the engine and wait until it responds."""
        subprocess.run(["ip", "link", "add", self._bridge, "type", "bridge"], check=True)
        with (self._folder / "dockerd.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self._command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._responds, f"the Docker engine (see {log.name})", seconds=_START_SECONDS)

    def _responds(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "dockerd.log").read_text()[-2000:]
        return self.run("docker", "version", check=False).returncode == 0

    def run(
        self, *command: str, check: bool = True, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that uses the engine."""
        environment = {**self.environment, **(variables or {})}
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=BUILD_SECONDS
        )
        if check:
            output = f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
            assert result.returncode == 0, f"{' '.join(command)}: exit code {result.returncode}\n{output}"
        return result

    def docker(self, *arguments: str) -> str:
        """Run ``docker`` and return its standard output."""
        return self.run("docker", *arguments).stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what ``docker inspect`` prints of an image or container."""
        description: dict[str, Any] = json.loads(self.docker("inspect", name))[0]
        return description

    def build_images(self) -> None:
        """Build the base image, the product's image, and stand-ins for the published images of docker-compose.yml."""
        base = self._folder / "base.tar"
        # Debian builds the published image with the same tool from the same packages.
        self.run("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", str(base))
        self.docker("import", "--change", 'CMD ["bash"]', str(base), _BASE)
        base.unlink()
        context = self._folder / "stand-ins"
        context.mkdir()
        (context / "Dockerfile").write_text(_STAND_INS)
        shutil.copyfile(Path(sys.executable).with_name("weed"), context / "weed")
        (context / "weed").chmod(0o755)
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
        for service in STAND_INS:
            self._build(tag_of(services[service]["image"]), "--target", service, str(context))
        shutil.rmtree(context)
        self.build_variant("cpu")

    def build_variant(self, variant: str) -> str:
        """Build a variant of the product's image; return its name."""
        options = ("--file", "docker/Dockerfile", "--build-arg", f"VARIANT={variant}", *BUILD_OPTIONS)
        self._build(name := f"crossfade:{variant}", *options, ".")
        return name

    def _build(self, name: str, *options: str) -> None:
        self.docker("build", "--quiet", "--network", "host", "--tag", name, *options)

    def stop(self) -> None:
        """Stop the engine and its containers, and delete their files."""
        if self._process is not None and self._process.poll() is None:
            self.run("sh", "-c", "docker rm --force --volumes $(docker ps --all --quiet)", check=False)
            self.run("docker", "network", "prune", "--force", check=False)
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self._folder}/")), reverse=True):
            subprocess.run(["umount", mount], check=True)
        subprocess.run(["ip", "link", "delete", self._bridge], check=True)
        for name in ("data", "exec"):
            shutil.rmtree(self._folder / name, ignore_errors=True)


@contextmanager
def running_engine(folder: Path) -> Iterator[Engine]:
    """Run an engine for the duration of the context."""
    engine = Engine(folder)
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()


if __name__ == "__main__":
    if (lack := missing()) is not None:
        print(lack, file=sys.stderr)
        raise SystemExit(2)
