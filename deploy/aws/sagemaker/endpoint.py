"""Deploy the model of a training job as a SageMaker endpoint, and update the endpoint with a newer one.

    deployment = plan_deployment(aws, "plays-1", EndpointOptions(endpoint="plays"))
    requests = make_requests(deployment, "plays-1-20260301-120000")
    deploy(aws, requests)

SageMaker starts the image of training with the argument ``serve``, and the content of the job's ``model.tar.gz`` in
``/opt/ml/model``. The archive has no dataset, so that the endpoint reads IDs and interactions where the job read them:
``DATA_VARIABLE`` names the place on S3.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import CloudError, InputError
from crossfade.deploy.aws.errors import translate_aws_errors
from crossfade.deploy.aws.sagemaker.container import TRAINING_CHANNEL, Paths

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

MODEL_FOLDER = Paths().model
DATA_VARIABLE = "CROSSFADE_SERVE_DATA"
DEFAULT_ENDPOINT_TYPE = "ml.m5.large"
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_VARIANT = "crossfade"
_STARTUP_SECONDS = 1800
"""Time for a host to copy the model and build its index."""


@dataclass(frozen=True)
class EndpointOptions:
    """The options of a deployment.

    Attributes:
        endpoint: name of the endpoint; one that exists is updated.
        image: the image in ECR.
        role: the ARN of the IAM role; None: that of the training job.
        instance_type: type of its hosts.
        hosts: their number.
        data: the dataset on S3; None: the one of the training job.
    """

    endpoint: str
    image: str
    role: str | None = None
    instance_type: str = DEFAULT_ENDPOINT_TYPE
    hosts: int = 1
    data: str | None = None


@dataclass(frozen=True)
class EndpointRequests:
    """The requests of a deployment: of CreateModel, CreateEndpointConfig, and CreateEndpoint or UpdateEndpoint."""

    model: dict[str, Any]
    configuration: dict[str, Any]
    endpoint: dict[str, Any]


def make_requests(description: dict[str, Any], options: EndpointOptions, name: str) -> EndpointRequests:
    """Build the requests that deploy a training job, whose ``description`` DescribeTrainingJob returned.

    ``name`` is that of the model and of the configuration, which are new for each deployment.

    Raises:
        InputError: an option is invalid, or the job has no model or no dataset on S3.
    """
    for option, text in (("--endpoint", options.endpoint), ("--name", name)):
        if not _NAME.fullmatch(text):
            raise InputError(
                f"{option} {text}: expected up to 63 letters, digits and hyphens, without a hyphen at either end"
            )
    job = description["TrainingJobName"]
    artifacts = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if not artifacts or description.get("TrainingJobStatus") != "Completed":
        raise InputError(
            f"--deploy {job}: has no model: it is {description.get('TrainingJobStatus', 'unknown').lower()}; expected "
            "a completed training job"
        )
    container = {
        "Image": options.image,
        "ModelDataUrl": artifacts,
        "Environment": {DATA_VARIABLE: options.data or _data_of(description)},
    }
    request: dict[str, Any] = {
        "ModelName": name,
        "ExecutionRoleArn": options.role or description["RoleArn"],
        "PrimaryContainer": container,
    }
    if "VpcConfig" in description:
        request["VpcConfig"] = description["VpcConfig"]
    variant = {
        "VariantName": _VARIANT,
        "ModelName": name,
        "InstanceType": options.instance_type,
        "InitialInstanceCount": options.hosts,
        "ContainerStartupHealthCheckTimeoutInSeconds": _STARTUP_SECONDS,
    }
    configuration = {"EndpointConfigName": name, "ProductionVariants": [variant]}
    return EndpointRequests(request, configuration, {"EndpointName": options.endpoint, "EndpointConfigName": name})


def _data_of(description: dict[str, Any]) -> str:
    """Return the dataset of a training job on S3."""
    for channel in description.get("InputDataConfig", []):
        if channel["ChannelName"] == TRAINING_CHANNEL:
            uri: str = channel["DataSource"]["S3DataSource"]["S3Uri"]
            return uri
    path: str = description.get("HyperParameters", {}).get("data.path", "")
    if not path.startswith("s3://"):
        raise InputError(
            f"--deploy {description['TrainingJobName']}: its dataset is not on S3 ('{path}'); name a copy there with "
            "--data s3://BUCKET/PREFIX"
        )
    return path


def describe_job(aws: Aws, name: str) -> dict[str, Any]:
    """Describe the training job ``name``.

    Raises:
        CloudRequestError, CloudError: there is none, or AWS does not answer.
    """
    with translate_aws_errors(f"describing the training job {name}", aws.region):
        return dict(aws.sagemaker.describe_training_job(TrainingJobName=name))


def endpoint_exists(aws: Aws, name: str) -> bool:
    """Return whether there is an endpoint ``name``.

    Raises:
        CloudRequestError, CloudError: AWS does not answer.
    """
    with translate_aws_errors(f"looking for the endpoint {name}", aws.region):
        found = aws.sagemaker.list_endpoints(NameContains=name)["Endpoints"]
    return any(each["EndpointName"] == name for each in found)


def check_requests(aws: Aws, requests: EndpointRequests) -> None:
    """Check the requests against the service's model, before the first is sent.

    Raises:
        InputError: one is invalid.
    """
    aws.check_request(aws.sagemaker, "CreateModel", requests.model)
    aws.check_request(aws.sagemaker, "CreateEndpointConfig", requests.configuration)
    aws.check_request(aws.sagemaker, "CreateEndpoint", requests.endpoint)


def deploy(aws: Aws, requests: EndpointRequests, *, update: bool) -> None:
    """Send the requests; ``update`` replaces the hosts of an endpoint that exists, which goes on answering.

    Raises:
        CloudRequestError, CloudError: AWS does not accept one of them.
    """
    sagemaker, endpoint = aws.sagemaker, requests.endpoint["EndpointName"]
    with translate_aws_errors(f"creating the model {requests.model['ModelName']}", aws.region):
        sagemaker.create_model(**requests.model)
    with translate_aws_errors(f"creating the configuration of the endpoint {endpoint}", aws.region):
        sagemaker.create_endpoint_config(**requests.configuration)
    with translate_aws_errors(f"{'updating' if update else 'creating'} the endpoint {endpoint}", aws.region):
        if update:
            sagemaker.update_endpoint(**requests.endpoint)
        else:
            sagemaker.create_endpoint(**requests.endpoint)


def wait_until_in_service(
    aws: Aws, name: str, pause: Callable[[float], None], poll_seconds: float, on_status: Callable[[str], None]
) -> None:
    """Wait until the endpoint ``name`` answers requests; ``on_status`` gets each new status.

    Raises:
        CloudError: it failed; the message has AWS's reason.
        CloudRequestError: AWS does not describe it.
    """
    last = ""
    while True:
        with translate_aws_errors(f"describing the endpoint {name}", aws.region):
            description = aws.sagemaker.describe_endpoint(EndpointName=name)
        status: str = description["EndpointStatus"]
        if status != last:
            on_status(status)
            last = status
        if status == "InService":
            return
        if status in ("Failed", "OutOfService", "RollingBack", "UpdateRollbackFailed"):
            reason = description.get("FailureReason", "AWS gives no reason")
            raise CloudError(f"the endpoint {name} is {status}: {reason}", "fault")
        pause(poll_seconds)
