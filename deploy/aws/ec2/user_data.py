"""The script by which an instance becomes a host of a run. It holds no secret.

It needs bash, curl and Docker, and no AWS command line: those are what the ECS-optimised images of Amazon Linux have.
What it may do its role says; the signatures come from curl (``--aws-sigv4``, curl 7.75 and later).
"""

from __future__ import annotations

import shlex

from deploy.aws.ec2.spec import RunSpec, split_uri

_SCRIPT = r"""
imds=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}

# The dead-man switch comes before anything that can fail: the instance terminates when it shuts down.
shutdown -h "+$minutes" "the run's --max-hours are over" || exit 1

main() {
    trap 'shutdown -h now' EXIT
    imds_token=$(curl -sf --retry 5 --retry-connrefused -m 5 -X PUT "$imds/latest/api/token" \
        -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600') || fail 'the metadata service gives no token'
    index=$(metadata ami-launch-index) || fail 'the metadata service does not say which host this is'
    number=$((first + index))
    instance=$(metadata instance-id)
    echo "crossfade: host $number of run $run"
    tell starting ''
    # The image of ECS brings its agent along, which is not needed.
    systemctl stop --no-block ecs 2>/dev/null
    $prepare
    log_in
    pull
    # The host's own network: its roles are reached from the other hosts, and the metadata service from them.
    docker run --rm --name crossfade --network host $gpus --ulimit memlock=-1 --volume crossfade:/runs \
        --env AWS_REGION="$region" "$image" ec2-host --storage "$storage" --number "$number" \
        --token-parameter "$token_parameter" --run-dir /runs/run
    echo "crossfade: host $number has ended with exit code $?"
}

metadata() {
    curl -sf --retry 5 --retry-connrefused -m 5 "$imds/latest/meta-data/$1" -H "X-aws-ec2-metadata-token: $imds_token"
}

field() {
    sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" | head -n 1
}

# signed SERVICE CURL-ARGUMENTS: a request signed with the role's credentials, which go to curl by its standard input.
signed() {
    local service=$1 said
    shift
    said=$(metadata "iam/security-credentials/$(metadata iam/security-credentials/)") || return
    {
        printf 'user = "%s:%s"\n' "$(field AccessKeyId <<<"$said")" "$(field SecretAccessKey <<<"$said")"
        printf 'header = "X-Amz-Security-Token: %s"\n' "$(field Token <<<"$said")"
    } | curl -sS --fail-with-body --retry 5 -m 60 --aws-sigv4 "aws:amz:$region:$service" --config - "$@"
}

# tell STATE MESSAGE: how this host fares, for who follows the run.
tell() {
    local at=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-https://s3.$region.$domain}} text
    text=$(mktemp)
    printf '{"state": "%s", "message": "%s", "instance": "%s"}\n' \
        "$1" "$(tr -cd '[:print:]' <<<"$2" | tr -d '"\\')" "$instance" >"$text"
    signed s3 -T "$text" "$at/$bucket/$key/hosts/$number.json" || echo "crossfade: S3 was not told: $1 $2"
    rm -f "$text"
}

fail() {
    echo "crossfade: error: $1"
    [ -z "$number" ] || tell failed "$1"
    exit 1
}

log_in() {
    [ -n "$registry" ] || return 0
    local at=${AWS_ENDPOINT_URL_ECR:-${AWS_ENDPOINT_URL:-https://api.ecr.$region.$domain}} said password
    said=$(signed ecr -X POST "$at/" -d '{}' -H 'Content-Type: application/x-amz-json-1.1' \
        -H 'X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken') ||
        fail "ECR gives no password for $registry: $said"
    password=$(field authorizationToken <<<"$said" | base64 -d)
    docker login --username AWS --password-stdin "$registry" <<<"${password#AWS:}" ||
        fail "Docker cannot log in at $registry"
}

pull() {
    local attempt said
    for attempt in 1 2 3 4 5; do
        said=$(docker pull --quiet "$image" 2>&1) && return
        echo "crossfade: attempt $attempt to pull $image: $said"
        sleep "${pause:-$((attempt * 5))}"
    done
    fail "the image $image cannot be pulled: $said"
}

# The GPU image of ECS has a driver that no longer knows the K80; 470 is the last branch that does.
install_driver_470() {
    nvidia-smi --list-gpus 2>/dev/null | grep -q . && return
    echo "crossfade: installing NVIDIA's driver $driver for the K80"
    dnf remove -y -q 'nvidia-driver*' 'kmod-nvidia*' 'nvidia-open*'
    dnf install -y -q gcc make "kernel-devel-$(uname -r)" || fail 'what the driver is built with cannot be installed'
    curl -sSf --retry 5 -o /tmp/driver.run "$driver_from" || fail "NVIDIA's driver cannot be fetched from $driver_from"
    sh /tmp/driver.run --silent --no-drm || fail "NVIDIA's driver $driver cannot be installed"
    systemctl restart docker
    nvidia-smi --list-gpus | grep -q . || fail "NVIDIA's driver $driver finds no GPU"
}

main
"""
_DRIVER = "470.256.02"
_DRIVER_FROM = f"https://us.download.nvidia.com/tesla/{_DRIVER}/NVIDIA-Linux-x86_64-{_DRIVER}.run"
MAX_BYTES = 16384
"""Of user data, by EC2's limits."""


def user_data(plan: RunSpec, first: int) -> str:
    """The script of the instances that are started together as the hosts from number ``first`` on."""
    bucket, key = split_uri(plan.storage, "the run's folder")
    registry = plan.image.partition("/")[0]
    settings = {
        "run": plan.run,
        "region": plan.region,
        "domain": plan.domain,
        "first": str(first),
        "number": "",
        "image": plan.image,
        "registry": registry if is_ecr(registry) else "",
        "storage": plan.storage,
        "bucket": bucket,
        "key": key,
        "token_parameter": plan.token_parameter,
        "minutes": str(plan.minutes),
        "gpus": "" if plan.variant == "cpu" else "--gpus all",
        "prepare": "install_driver_470" if plan.variant == "cu90" and plan.ami is None else "",
        "driver": _DRIVER,
        "driver_from": _DRIVER_FROM,
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    text = "\n".join(["#!/bin/bash", f"# A host of Crossfade's run {plan.run}.", *lines]) + _SCRIPT
    assert len(text.encode()) <= MAX_BYTES
    return text


def is_ecr(registry: str) -> bool:
    """Whether ``registry`` is one of ECR, which gives passwords to roles."""
    return ".dkr.ecr." in registry and ".amazonaws.com" in registry
