"""Deploy the model of a training job as a SageMaker endpoint, or let it transform files on S3 in batches.

    deployment = plan_deployment(aws, SubmitSageMakerOptions.of(deploy="plays-1", endpoint="plays"))
    deploy(aws, deployment)
    transform(aws, plan_transform(aws, SubmitSageMakerOptions.of(transform="plays-1", input=…, output=…)))

SageMaker starts the image of training with the argument ``serve``, and the content of the job's ``model.tar.gz`` in
``/opt/ml/model``. The archive has no dataset, so that the endpoint reads IDs and interactions where the job read them:
``DATA_VARIABLE`` names the place on S3.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import OptionError, option_named
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.deploy.aws.aws_errors import CloudError, translate_aws_errors
from crossfade.deploy.aws.sagemaker.container import TRAINING_CHANNEL, Paths
from crossfade.deploy.aws.sagemaker.jobs import describe_job
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.deploy.aws.sagemaker.request import check_name, check_s3, default_image, role_arn, timed_name

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

MODEL_FOLDER = Paths().model
DATA_VARIABLE = "CROSSFADE_SERVE_DATA"
_VARIANT = "crossfade"
_STARTUP_SECONDS = 1800
"""Time for a host to copy the model and build its index."""
_LINES = "application/jsonlines"
_TRANSFORM_SECONDS = 3600
"""Time for the answer to a part of a file, of a megabyte at most."""
_FAILED = ("Failed", "OutOfService", "RollingBack", "UpdateRollbackFailed")


@dataclass(frozen=True)
class Deployment:
    """The requests of a deployment: of CreateModel, CreateEndpointConfig, and CreateEndpoint or UpdateEndpoint.

    Attributes:
        model: the request that creates the model.
        configuration: the request that creates the configuration of the endpoint.
        endpoint: the request that creates or updates the endpoint.
        image: the image that serves the model.
        update: whether the endpoint exists; its hosts are replaced, while it goes on answering.
    """

    model: dict[str, Any]
    configuration: dict[str, Any]
    endpoint: dict[str, Any]
    image: str
    update: bool

    @property
    def name(self) -> str:
        """The name of the endpoint."""
        return str(self.endpoint["EndpointName"])

    def to_json(self) -> dict[str, Any]:
        """Return the requests by operation."""
        action = "UpdateEndpoint" if self.update else "CreateEndpoint"
        return {"CreateModel": self.model, "CreateEndpointConfig": self.configuration, action: self.endpoint}


def plan_deployment(aws: Aws, options: SubmitSageMakerOptions) -> Deployment:
    """Return the requests that deploy the model of the training job ``options.deploy``, checked but not sent.

    Raises:
        InputError: an option is invalid, or the training job has no model.
        CloudRequestError, CloudError: AWS rejects a request or cannot serve it.
    """
    assert options.deploy is not None, "a training job is named"
    endpoint = options.endpoint or options.deploy
    check_name("endpoint", endpoint)
    model = _plan_model(aws, options, options.deploy)
    name, image = model["ModelName"], model["PrimaryContainer"]["Image"]
    variant = {
        "VariantName": _VARIANT,
        "ModelName": name,
        "InstanceType": options.endpoint_type,
        "InitialInstanceCount": options.endpoint_hosts,
        "ContainerStartupHealthCheckTimeoutInSeconds": _STARTUP_SECONDS,
    }
    configuration = {"EndpointConfigName": name, "ProductionVariants": [variant]}
    request = {"EndpointName": endpoint, "EndpointConfigName": name}
    aws.check_request(aws.sagemaker, "CreateEndpointConfig", configuration)
    aws.check_request(aws.sagemaker, "CreateEndpoint", request)
    return Deployment(model, configuration, request, image, _exists(aws, endpoint))


def _plan_model(aws: Aws, options: SubmitSageMakerOptions, job: str) -> dict[str, Any]:
    """Return the request for a model of the training ``job``, checked; without a role, with that of the job."""
    image = options.image or default_image(aws, options.endpoint_type)
    role = role_arn(aws, options.role) if options.role else None
    description = describe_job(aws, job)
    name = options.name or timed_name(job)
    check_name("name", name)
    option = "deploy" if options.transform is None else "transform"
    artifacts = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if not artifacts or description.get("TrainingJobStatus") != "Completed":
        status = description.get("TrainingJobStatus", "unknown").lower()
        raise OptionError(
            option, found=job, problem=f"has no model: it is {status}", expected="a completed training job"
        )
    container = {
        "Image": image,
        "ModelDataUrl": artifacts,
        "Environment": {DATA_VARIABLE: options.data or _data_of(description, option)},
    }
    request: dict[str, Any] = {
        "ModelName": name,
        "ExecutionRoleArn": role or description["RoleArn"],
        "PrimaryContainer": container,
    }
    if "VpcConfig" in description:
        request["VpcConfig"] = description["VpcConfig"]
    aws.check_request(aws.sagemaker, "CreateModel", request)
    return request


def _data_of(description: dict[str, Any], option: str) -> str:
    """Return the dataset on S3 of the training job that ``option`` names."""
    for channel in description.get("InputDataConfig", []):
        if channel["ChannelName"] == TRAINING_CHANNEL:
            uri: str = channel["DataSource"]["S3DataSource"]["S3Uri"]
            return uri
    path: str = description.get("HyperParameters", {}).get("data.path", "")
    if not path.startswith("s3://"):
        fix = f"name a copy there with {option_named('data', 's3://BUCKET/PREFIX')}"
        problem = f"its dataset is not on S3 ('{path}')"
        raise OptionError(option, found=description["TrainingJobName"], problem=problem, fix=fix)
    return path


def _exists(aws: Aws, name: str) -> bool:
    with translate_aws_errors(f"looking for the endpoint {name}", aws.region):
        found = aws.sagemaker.list_endpoints(NameContains=name)["Endpoints"]
    return any(each["EndpointName"] == name for each in found)


def deploy(aws: Aws, deployment: Deployment) -> None:
    """Send the requests.

    Raises:
        CloudRequestError, CloudError: AWS does not accept one of them.
    """
    sagemaker, endpoint = aws.sagemaker, deployment.name
    with translate_aws_errors(f"creating the model {deployment.model['ModelName']}", aws.region):
        sagemaker.create_model(**deployment.model)
    with translate_aws_errors(f"creating the configuration of the endpoint {endpoint}", aws.region):
        sagemaker.create_endpoint_config(**deployment.configuration)
    send = sagemaker.update_endpoint if deployment.update else sagemaker.create_endpoint
    with translate_aws_errors(f"{'updating' if deployment.update else 'creating'} the endpoint {endpoint}", aws.region):
        send(**deployment.endpoint)


@dataclass(frozen=True)
class Transform:
    """The requests of a batch transform, of CreateModel and CreateTransformJob, and the image that serves the model."""

    model: dict[str, Any]
    job: dict[str, Any]

    @property
    def image(self) -> str:
        """The image that answers."""
        return str(self.model["PrimaryContainer"]["Image"])

    @property
    def name(self) -> str:
        """The name of the transform job."""
        return str(self.job["TransformJobName"])

    def to_json(self) -> dict[str, Any]:
        """Return the requests by operation."""
        return {"CreateModel": self.model, "CreateTransformJob": self.job}


def plan_transform(aws: Aws, options: SubmitSageMakerOptions) -> Transform:
    """Return the requests that let the model of the training job ``options.transform`` answer files, not sent.

    A line of a file is a request as of POST /recommend, and the line of the answer is its response.

    Raises:
        InputError: an option is invalid, or the training job has no model.
        CloudRequestError, CloudError: AWS rejects a request or cannot serve it.
    """
    assert options.transform is not None, "a training job is named"
    check_s3("input", options.input or "")
    check_s3("output", options.output or "")
    model = _plan_model(aws, options, options.transform)
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": options.input}}
    job = {
        "TransformJobName": model["ModelName"],
        "ModelName": model["ModelName"],
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": _TRANSFORM_SECONDS, "InvocationsMaxRetries": 3},
        "BatchStrategy": "MultiRecord",
        "MaxPayloadInMB": 1,
        "TransformInput": {"DataSource": source, "ContentType": _LINES, "SplitType": "Line"},
        "TransformOutput": {"S3OutputPath": options.output, "Accept": _LINES, "AssembleWith": "Line"},
        "TransformResources": {"InstanceType": options.endpoint_type, "InstanceCount": options.endpoint_hosts},
    }
    aws.check_request(aws.sagemaker, "CreateTransformJob", job)
    return Transform(model, job)


def transform(aws: Aws, planned: Transform) -> None:
    """Send the requests.

    Raises:
        CloudRequestError, CloudError: AWS does not accept one of them.
    """
    with translate_aws_errors(f"creating the model {planned.name}", aws.region):
        aws.sagemaker.create_model(**planned.model)
    with translate_aws_errors(f"starting the transform job {planned.name}", aws.region):
        aws.sagemaker.create_transform_job(**planned.job)


def wait_until_in_service(
    aws: Aws, name: str, pause: Callable[[float], None], poll_seconds: float, on_status: Callable[[str], None]
) -> None:
    """Wait until the endpoint ``name`` answers requests; ``on_status`` gets each new status.

    Raises:
        CloudError: it failed; the message has AWS's reason.
        CloudRequestError: AWS does not describe it.
    """

    def describe() -> tuple[str, str | None]:
        with translate_aws_errors(f"describing the endpoint {name}", aws.region):
            found = aws.sagemaker.describe_endpoint(EndpointName=name)
        return found["EndpointStatus"], found.get("FailureReason")

    _wait_until(("InService",), f"endpoint {name}", describe, pause, poll_seconds, on_status)


def wait_until_transformed(
    aws: Aws, name: str, pause: Callable[[float], None], poll_seconds: float, on_status: Callable[[str], None]
) -> int:
    """Wait until the transform job ``name`` has ended; return the exit code, 0 or, if it was stopped, 143.

    Raises:
        CloudError: it failed; the message has AWS's reason.
        CloudRequestError: AWS does not describe it.
    """

    def describe() -> tuple[str, str | None]:
        with translate_aws_errors(f"describing the transform job {name}", aws.region):
            found = aws.sagemaker.describe_transform_job(TransformJobName=name)
        return found["TransformJobStatus"], found.get("FailureReason")

    ends = {"Completed": 0, "Stopped": STOPPED_EXIT_CODE}
    return ends[_wait_until(tuple(ends), f"transform job {name}", describe, pause, poll_seconds, on_status)]


def _wait_until(
    reached: Sequence[str],
    what: str,
    describe: Callable[[], tuple[str, str | None]],
    pause: Callable[[float], None],
    poll_seconds: float,
    on_status: Callable[[str], None],
) -> str:
    """Call ``describe``, which returns a status and why it failed, until ``what`` has one of ``reached``; return it."""
    last = ""
    while True:
        status, reason = describe()
        if status != last:
            on_status(status)
            last = status
        if status in reached:
            return status
        if status in _FAILED:
            raise CloudError(f"the {what} is {status}: {reason or 'AWS gives no reason'}", "fault")
        pause(poll_seconds)
