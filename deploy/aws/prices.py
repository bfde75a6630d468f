"""Hourly prices of instances, from AWS's price list or, if it cannot be read, from a built-in table.

    price = hourly_price(aws, "AmazonSageMaker", "ml.p2.xlarge")
    Cost(price, hosts=2, hours=24.0).ceiling                     # the most that the job can cost, in US dollars

Prices are on demand, without tax, storage and traffic. Spot instances cost less.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors

if TYPE_CHECKING:
    from mypy_boto3_pricing.type_defs import FilterTypeDef

    from crossfade.deploy.aws.clients import Aws

Service = Literal["AmazonEC2", "AmazonSageMaker"]

TABLE_DATE = "July 2025"
TABLE_REGION = "us-east-1"

_EC2: dict[str, dict[str, float]] = {
    "p2": {"xlarge": 0.9, "8xlarge": 7.2, "16xlarge": 14.4},
    "p3": {"2xlarge": 3.06, "8xlarge": 12.24, "16xlarge": 24.48},
    "g4dn": {
        "xlarge": 0.526,
        "2xlarge": 0.752,
        "4xlarge": 1.204,
        "8xlarge": 2.176,
        "12xlarge": 3.912,
        "16xlarge": 4.352,
    },
    "g5": {
        "xlarge": 1.006,
        "2xlarge": 1.212,
        "4xlarge": 1.624,
        "8xlarge": 2.448,
        "12xlarge": 5.672,
        "16xlarge": 4.096,
        "24xlarge": 8.144,
        "48xlarge": 16.288,
    },
    "r5": {
        "large": 0.126,
        "xlarge": 0.252,
        "2xlarge": 0.504,
        "4xlarge": 1.008,
        "8xlarge": 2.016,
        "12xlarge": 3.024,
        "16xlarge": 4.032,
        "24xlarge": 6.048,
    },
    "r6i": {
        "large": 0.126,
        "xlarge": 0.252,
        "2xlarge": 0.504,
        "4xlarge": 1.008,
        "8xlarge": 2.016,
        "12xlarge": 3.024,
        "16xlarge": 4.032,
        "24xlarge": 6.048,
        "32xlarge": 8.064,
    },
    "r7g": {
        "large": 0.1071,
        "xlarge": 0.2142,
        "2xlarge": 0.4284,
        "4xlarge": 0.8568,
        "8xlarge": 1.7136,
        "12xlarge": 2.5704,
        "16xlarge": 3.4272,
    },
    "m5": {
        "large": 0.096,
        "xlarge": 0.192,
        "2xlarge": 0.384,
        "4xlarge": 0.768,
        "8xlarge": 1.536,
        "12xlarge": 2.304,
        "16xlarge": 3.072,
        "24xlarge": 4.608,
    },
}
_SAGEMAKER: dict[str, dict[str, float]] = {
    "ml.p2": {"xlarge": 1.125},
    "ml.p3": {"2xlarge": 3.825, "8xlarge": 14.688, "16xlarge": 28.152},
    "ml.g4dn": {
        "xlarge": 0.736,
        "2xlarge": 0.94,
        "4xlarge": 1.505,
        "8xlarge": 2.72,
        "12xlarge": 4.89,
        "16xlarge": 5.44,
    },
    "ml.g5": {
        "xlarge": 1.408,
        "2xlarge": 1.515,
        "4xlarge": 2.03,
        "8xlarge": 3.06,
        "12xlarge": 7.09,
        "16xlarge": 5.12,
        "24xlarge": 10.18,
        "48xlarge": 20.36,
    },
    "ml.m5": {"large": 0.115, "xlarge": 0.23, "2xlarge": 0.461, "4xlarge": 0.922, "12xlarge": 2.765, "24xlarge": 5.53},
}
_TRAINING = re.compile(r"([A-Z0-9]+-)?Train:ml\..+")
"""The usage type of training, as in USE1-Train:ml.m5.large."""


@dataclass(frozen=True)
class Price:
    """US dollars per hour of one instance, None if unknown, and the source of the figure."""

    dollars: float | None
    source: str


def hourly_price(aws: Aws | None, service: Service, instance_type: str) -> Price:
    """Return the price of ``instance_type`` in the region of ``aws``.

    It comes from AWS's price list or, if that cannot be read or ``aws`` is None, from the built-in table.
    """
    reason = "AWS's price list was not read"
    if aws is not None:
        try:
            dollars = _from_price_list(aws, service, instance_type)
            if dollars is not None:
                return Price(dollars, f"AWS's price list, {aws.region}")
            reason = f"AWS's price list has none for {aws.region}"
        except (CloudError, CloudRequestError) as error:
            reason = f"AWS's price list cannot be read: {getattr(error, 'code', '') or error.kind}"
    return _from_table(service, instance_type, reason)


def _from_table(service: Service, instance_type: str, reason: str) -> Price:
    family, _, size = instance_type.rpartition(".")
    dollars = (_EC2 if service == "AmazonEC2" else _SAGEMAKER).get(family, {}).get(size)
    source = f"{TABLE_REGION}, {TABLE_DATE}, from the built-in table"
    return Price(dollars, f"{source}; {reason}" if dollars is not None else f"not in the table; {reason}")


def _from_price_list(aws: Aws, service: Service, instance_type: str) -> float | None:
    with translate_aws_errors("reading the price", aws.region):
        answer = aws.pricing.get_products(ServiceCode=service, Filters=_filters(service, instance_type, aws.region))
    products = [json.loads(product) for product in answer["PriceList"]]
    return next((dollars for product in products if (dollars := _on_demand(service, product)) is not None), None)


def _filters(service: Service, instance_type: str, region: str) -> list[FilterTypeDef]:
    fields = {"regionCode": region}
    if service == "AmazonEC2":
        fields |= {
            "instanceType": instance_type,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
    else:
        fields |= {"instanceName": instance_type}
    return [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]


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


@dataclass(frozen=True)
class Cost:
    """The cost of some hosts, per hour and at most."""

    price: Price
    hosts: int
    hours: float

    @property
    def hourly(self) -> float | None:
        """US dollars per hour of all hosts; None if the price is unknown."""
        return None if self.price.dollars is None else self.price.dollars * self.hosts

    @property
    def ceiling(self) -> float | None:
        """US dollars of all hosts for all hours; None if the price is unknown."""
        return None if self.hourly is None else self.hourly * self.hours

    def explain(self, instance_type: str, *, spot: bool) -> str:
        """Describe the cost in one line."""
        usage = f"{self.hosts} x {instance_type}, {self.hours:g} h at most"
        if self.hourly is None or self.ceiling is None:
            return f"cost: unknown: the price of {instance_type} is {self.price.source}; {usage}"
        note = "; on demand, spot costs less" if spot else ""
        dollars = f"${self.hourly:,.2f} an hour, ${self.ceiling:,.2f} at most"
        return f"cost: {dollars} ({usage}; price: {self.price.source}{note})"
