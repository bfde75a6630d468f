"""Placement groups, which moto does not support: EC2's responses to the three calls, kept in memory.

groups = PlacementGroups(aws)          # the gateway answers these calls from now on
assert groups.tags == {}
"""

from xml.sax.saxutils import escape

from aws_server import AwsServer, Call, error_text

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
        name, form, tag = call.body["GroupName"], call.body, "TagSpecification.1.Tag."
        assert (form["Strategy"], form["TagSpecification.1.ResourceType"]) == ("cluster", "placement-group")
        keys = [key.removesuffix("Key") for key in form if key.startswith(tag) and key.endswith(".Key")]
        self.tags[name] = {form[f"{key}Key"]: form[f"{key}Value"] for key in keys}
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
        for reservation in self._aws.client("ec2").describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                if instance["Placement"].get("GroupName") == name and instance["State"]["Name"] != "terminated":
                    return 400, error_text(
                        call, "InvalidPlacementGroup.InUse", f"The placement group {name} is in use."
                    )
        del self.tags[name]
        return _response(call, "<return>true</return>")

    def _describe(self, name: str) -> str:
        items = (f"<key>{escape(key)}</key><value>{escape(value)}</value>" for key, value in self.tags[name].items())
        tags = "".join(f"<item>{item}</item>" for item in items)
        state = "<strategy>cluster</strategy><state>available</state>"
        return f"<groupName>{name}</groupName>{state}<tagSet>{tags}</tagSet>"


def _response(call: Call, inner: str) -> tuple[int, str]:
    return 200, f'<{call.action}Response xmlns="{_NAMESPACE}"><requestId>0</requestId>{inner}</{call.action}Response>'
