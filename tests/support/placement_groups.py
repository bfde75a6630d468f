"""Placement groups, which moto does not support: EC2's responses to the three calls, kept in memory.

groups = PlacementGroups(aws)          # the gateway answers these calls from now on
assert groups.tags == {}
"""

import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from aws_server import AwsServer, Call

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


class PlacementGroups:
    """The placement groups of an account: their tags by name."""

    def __init__(self, aws: AwsServer) -> None:
        self.tags: dict[str, dict[str, str]] = {}
        self._aws = aws
        aws.placement_groups = self.tags
        for action in (self.CreatePlacementGroup, self.DescribePlacementGroups, self.DeletePlacementGroup):
            aws.handle(action.__name__, action)

    def CreatePlacementGroup(self, call: Call) -> tuple[int, str]:
        """Create a group."""
        name, form = call.body["GroupName"], call.body
        if name in self.tags:
            return _error("InvalidPlacementGroup.Duplicate", f"The Placement Group '{name}' already exists.")
        assert form["Strategy"] == "cluster"
        assert form["TagSpecification.1.ResourceType"] == "placement-group"
        self.tags[name] = {
            form[key]: form[key.removesuffix("Key") + "Value"]
            for key in form
            if key.startswith("TagSpecification.1.Tag.") and key.endswith(".Key")
        }
        return _response(call, f"<placementGroup>{self._describe(name)}</placementGroup>")

    def DescribePlacementGroups(self, call: Call) -> tuple[int, str]:
        """Return the groups with the requested tag."""
        tag, value = call.body["Filter.1.Name"].removeprefix("tag:"), call.body["Filter.1.Value.1"]
        names = [name for name, tags in self.tags.items() if tags.get(tag) and value in {"*", tags[tag]}]
        items = "".join(f"<item>{self._describe(name)}</item>" for name in names)
        return _response(call, f"<placementGroupSet>{items}</placementGroupSet>")

    def DeletePlacementGroup(self, call: Call) -> tuple[int, str]:
        """Delete a group, unless an instance is in it."""
        name = call.body["GroupName"]
        if name not in self.tags:
            return _error("InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")
        for reservation in self._aws.client("ec2").describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                group = instance.get("Placement", {}).get("GroupName")
                if group == name and instance["State"]["Name"] != "terminated":
                    return _error("InvalidPlacementGroup.InUse", f"The placement group {name} is in use.")
        del self.tags[name]
        return _response(call, "<return>true</return>")

    def _describe(self, name: str) -> str:
        tags = "".join(
            f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>"
            for key, value in self.tags[name].items()
        )
        state = "<strategy>cluster</strategy><state>available</state>"
        return f"<groupName>{name}</groupName>{state}<tagSet>{tags}</tagSet>"


def _response(call: Call, inner: str) -> tuple[int, str]:
    text = f'<{call.action}Response xmlns="{_NAMESPACE}"><requestId>0</requestId>{inner}</{call.action}Response>'
    ET.fromstring(text)  # well-formed
    return 200, text


def _error(code: str, message: str) -> tuple[int, str]:
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return 400, f"<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>"
