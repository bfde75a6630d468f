"""The user data script that makes an instance a host of a run. It contains no secret.

It needs bash, curl and Docker, which the ECS-optimized images of Amazon Linux have, but no AWS command line: curl signs
the requests (``--aws-sigv4``, curl 7.75 and later) with the credentials of the instance's role.
"""

from __future__ import annotations

import shlex

from crossfade.deploy.aws.accelerators import ENGINES
from crossfade.deploy.aws.ec2.run_spec import RunSpec, split_uri
from crossfade.deploy.aws.ecr import EcrImage

_SCRIPT = r"""
imds=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}

# The dead-man switch comes before anything that can fail: the instance terminates when it shuts down.
shutdown -h "+$minutes" "the run's time is over" || exit 1

main() {
    trap 'shutdown -h now' EXIT
    imds_token=$(curl -sf --retry 5 --retry-connrefused -m 5 -X PUT "$imds/latest/api/token" \
        -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600') || fail 'the metadata service returned no token'
    index=$(metadata ami-launch-index) || fail 'the metadata service has no ami-launch-index'
    number=$((first + index))
    instance=$(metadata instance-id)
    echo "crossfade: host $number of run $run"
    write_state starting ''
    # The ECS image starts the ECS agent, which is not needed.
    systemctl stop --no-block ecs 2>/dev/null
    $prepare
    log_in
    pull
    # The host's network: other hosts connect to the roles in the container, and these to the metadata service. The
    # user crossfade, since the same image may have been built for SageMaker, to run as root.
    docker run --rm --name crossfade --network host --user crossfade --cap-drop ALL \
        --security-opt no-new-privileges $gpus --ulimit memlock=-1 --volume crossfade:/runs \
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

# signed SERVICE CURL-ARGUMENTS: send a request signed with the role's credentials. They are passed to curl on stdin, so
# that they do not show in the list of processes.
signed() {
    local service=$1 credentials
    shift
    credentials=$(metadata "iam/security-credentials/$(metadata iam/security-credentials/)") || return
    {
        printf 'user = "%s:%s"\n' "$(field AccessKeyId <<<"$credentials")" "$(field SecretAccessKey <<<"$credentials")"
        printf 'header = "X-Amz-Security-Token: %s"\n' "$(field Token <<<"$credentials")"
    } | curl -sS --fail-with-body --retry 5 -m 60 --aws-sigv4 "aws:amz:$region:$service" --config - "$@"
}

# write_state STATE MESSAGE: upload the state of this host to the run's folder.
write_state() {
    local endpoint=${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-https://s3.$region.$domain}} text
    text=$(mktemp)
    printf '{"state": "%s", "message": "%s", "instance": "%s"}\n' \
        "$1" "$(tr -cd '[:print:]' <<<"$2" | tr -d '"\\')" "$instance" >"$text"
    signed s3 -T "$text" "$endpoint/$bucket/$key/hosts/$number.json" ||
        echo "crossfade: cannot write the state to S3: $1 $2"
    rm -f "$text"
}

fail() {
    echo "crossfade: error: $1"
    [ -z "$number" ] || write_state failed "$1"
    exit 1
}

log_in() {
    [ -n "$registry" ] || return 0
    local endpoint=${AWS_ENDPOINT_URL_ECR:-${AWS_ENDPOINT_URL:-https://api.ecr.$region.$domain}} response password
    response=$(signed ecr -X POST "$endpoint/" -d '{}' -H 'Content-Type: application/x-amz-json-1.1' \
        -H 'X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken') ||
        fail "ECR returned no password for $registry: $response"
    password=$(field authorizationToken <<<"$response" | base64 -d)
    docker login --username AWS --password-stdin "$registry" <<<"${password#AWS:}" ||
        fail "docker cannot log in to $registry"
}

pull() {
    local attempt output
    for attempt in 1 2 3 4 5; do
        output=$(docker pull --quiet "$image" 2>&1) && return
        echo "crossfade: attempt $attempt to pull $image: $output"
        sleep "${pause:-$((attempt * 5))}"
    done
    fail "cannot pull the image $image: $output"
}

# The driver in the ECS image does not support the K80; 470 is the last branch that does.
install_driver_470() {
    nvidia-smi --list-gpus 2>/dev/null | grep -q . && return
    echo "crossfade: installing NVIDIA's driver $driver for the K80"
    dnf remove -y -q 'nvidia-driver*' 'kmod-nvidia*' 'nvidia-open*'
    dnf install -y -q gcc make "kernel-devel-$(uname -r)" ||
        fail 'cannot install the packages that the driver is built with'
    curl -sSf --retry 5 -o /tmp/driver.run "$driver_url" || fail "cannot download NVIDIA's driver from $driver_url"
    sh /tmp/driver.run --silent --no-drm || fail "cannot install NVIDIA's driver $driver"
    systemctl restart docker
    nvidia-smi --list-gpus | grep -q . || fail "NVIDIA's driver $driver finds no GPU"
}

main
"""
_DRIVER = "470.256.02"
_DRIVER_URL = f"https://us.download.nvidia.com/tesla/{_DRIVER}/NVIDIA-Linux-x86_64-{_DRIVER}.run"
MAX_BYTES = 16384
"""EC2's limit of user data."""


def user_data(spec: RunSpec, first: int) -> str:
    """Return the script of instances that are started together, as hosts ``first``, ``first`` + 1 and so on."""
    bucket, key = split_uri(spec.storage, "the run's folder")
    image = EcrImage.parse(spec.image)
    variables = {
        "run": spec.run,
        "region": spec.region,
        "domain": spec.domain,
        "first": str(first),
        "number": "",
        "image": spec.image,
        "registry": image.registry if image is not None else "",
        "storage": spec.storage,
        "bucket": bucket,
        "key": key,
        "token_parameter": spec.token_parameter,
        "minutes": str(spec.minutes),
        "gpus": "" if ENGINES[spec.variant] == "cpu" else "--gpus all",
        "prepare": "install_driver_470" if spec.variant == "cu90" and spec.ami is None else "",
        "driver": _DRIVER,
        "driver_url": _DRIVER_URL,
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    text = "\n".join(["#!/bin/bash", f"# A host of Crossfade's run {spec.run}.", *lines]) + _SCRIPT
    assert len(text.encode()) <= MAX_BYTES
    return text
