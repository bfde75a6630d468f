"""The cost of instances, by AWS's price list.

Prices are on demand, without tax, storage, and traffic. Spot instances cost less.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from mypy_boto3_pricing.type_defs import FilterTypeDef

    from crossfade.deploy.aws.clients import Aws

Service = Literal["AmazonEC2", "AmazonSageMaker"]
_FIELDS: dict[Service, dict[str, str]] = {
    "AmazonEC2": {
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    },
    "AmazonSageMaker": {},
}
"""By service, the fields that select one price of an instance type."""
_TRAINING = re.compile(r"([A-Z0-9]+-)?Train:ml\..+")
"""The usage type of training, as in USE1-Train:ml.m5.large."""


def describe_cost(
    aws: Aws | None, service: Service, instance_type: str, *, hosts: int, hours: float, spot: bool
) -> str:
    """Return a line with the cost of ``hosts`` instances in an hour, and for all ``hours``; ask nobody without ``aws``.

    The price is unknown where the price list cannot be read or does not have it: that ends nothing.
    """
    dollars, reason = None, "AWS's price list was not read"
    if aws is not None:
        try:
            dollars = _hourly_price(aws, service, instance_type)
            reason = f"AWS's price list has none for {aws.region}"
        except (CloudError, CloudRequestError) as error:
            reason = f"AWS's price list cannot be read: {error.code or error.kind}"
    usage = f"{hosts} x {instance_type}, {hours:g} h at most"
    if aws is None or dollars is None:
        return f"cost: unknown: {reason}; {usage}"
    note = "; on demand, spot costs less" if spot else ""
    hourly = dollars * hosts
    return (
        f"cost: ${hourly:,.2f} an hour, ${hourly * hours:,.2f} at most ({usage}; price: AWS's price list, "
        f"{aws.region}{note})"
    )


def _hourly_price(aws: Aws, service: Service, instance_type: str) -> float | None:
    """Return US dollars per hour of one instance; None if the price list does not have the type in the region."""
    name = "instanceType" if service == "AmazonEC2" else "instanceName"
    fields = {"regionCode": aws.region, name: instance_type, **_FIELDS[service]}
    filters: list[FilterTypeDef] = [{"Type": "TERM_MATCH", "Field": key, "Value": fields[key]} for key in fields]
    with translate_aws_errors("reading the price", aws.region):
        answer = aws.pricing.get_products(ServiceCode=service, Filters=filters)
    products = [json.loads(product) for product in answer["PriceList"]]
    return next((dollars for product in products if (dollars := _on_demand(service, product)) is not None), None)


def _on_demand(service: Service, product: dict[str, Any]) -> float | None:
    """Return dollars per hour; None if ``product`` is not the training price."""
    usage = product.get("product", {}).get("attributes", {}).get("usagetype", "")
    if service == "AmazonSageMaker" and not _TRAINING.fullmatch(usage):
        return None
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            dollars = float(dimension["pricePerUnit"].get("USD", 0))
            if dollars > 0:
                return dollars
    return None
