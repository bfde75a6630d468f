"""``crossfade submit sagemaker --deploy``: deploy the model of a training job as an endpoint."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from crossfade.cli.options.parsing import positive_integer
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_logger = logging.getLogger(__name__)


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an endpoint to ``parser``."""
    from crossfade.deploy.aws.sagemaker.endpoint import DEFAULT_ENDPOINT_TYPE

    group = parser.add_argument_group("endpoint (with --deploy)")
    group.add_argument(
        "--endpoint", metavar="NAME", help="create this endpoint, or update it (default: the name of the training job)"
    )
    group.add_argument(
        "--endpoint-type",
        default=DEFAULT_ENDPOINT_TYPE,
        metavar="TYPE",
        help="serve on this instance type (default: %(default)s)",
    )
    group.add_argument(
        "--endpoint-hosts", type=positive_integer, default=1, metavar="N", help="serve on N hosts (default: 1)"
    )
    group.add_argument(
        "--data", metavar="URI", help="read IDs and interactions on S3 here (default: where the training job read them)"
    )


def deploy_job(
    aws: Aws, arguments: argparse.Namespace, image: str, role: str | None, pause: Callable[[float], None]
) -> int:
    """Deploy the model of the training job that ``--deploy`` names; with --dry-run, only print the requests.

    Raises:
        InputError: an option is invalid, or the training job has no model.
        CloudRequestError, CloudError: AWS rejects a request or cannot serve it.
    """
    from crossfade.deploy.aws.sagemaker.endpoint import (
        EndpointOptions,
        check_requests,
        deploy,
        describe_job,
        endpoint_exists,
        make_requests,
        wait_until_in_service,
    )
    from crossfade.deploy.aws.sagemaker.jobs import image_problem

    job: str = arguments.deploy
    endpoint = arguments.endpoint or job
    options = EndpointOptions(endpoint, image, role, arguments.endpoint_type, arguments.endpoint_hosts, arguments.data)
    name = arguments.name or f"{job[:47].rstrip('-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    requests = make_requests(describe_job(aws, job), options, name)
    check_requests(aws, requests)
    update = endpoint_exists(aws, endpoint)
    if arguments.dry_run:
        action = "UpdateEndpoint" if update else "CreateEndpoint"
        shown = {"CreateModel": requests.model, "CreateEndpointConfig": requests.configuration}
        print(json.dumps({**shown, action: requests.endpoint}, indent=2))
        return 0
    if line := image_problem(aws, image):
        _logger.info(line)
    deploy(aws, requests, update=update)
    print_line(endpoint)
    if not arguments.wait:
        _logger.info(f"the endpoint {endpoint} is being {'updated' if update else 'created'}; --wait waits for it")
        return 0
    wait_until_in_service(
        aws, endpoint, pause, arguments.poll_seconds, lambda status: _logger.info(f"{endpoint}: {status}")
    )
    return 0
