"""What a Terraform provider's resources accept, read from the classes that CDKTF once generated from the provider's schema.

A provider's binary comes from Terraform's own registry alone. The npm packages @cdktf/provider-* hold, for each resource, a
JavaScript class that repeats its schema: which arguments there are, of which type, which are blocks, which can be left out,
and what is known only afterwards. They do not tell of a resource's optional argument whether the provider fills it in: here it stays null.

Whatever the reader does not recognise is an error: a schema with a hole in it would wave mistakes through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from tf.gen import tfplugin_pb2 as pb

Type = (
    str | list["Type"] | dict[str, "Type"]
)  # as Terraform writes types in JSON: "string", ["list", "string"], ["object", {}]

_CLASS = re.compile(r"^class (\w+) extends cdktf\.(\w+) \{.*?^\}$", re.MULTILINE | re.DOTALL)
_MAPPER = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{.*?^\}$", re.MULTILINE | re.DOTALL)
_ARGUMENT = re.compile(
    r"^\s+(?P<name>\w+): \{\n\s+value: .*,\n\s+isBlock: (?P<block>\w+),\n"
    r"\s+type: \"(?P<kind>\w+)\",\n\s+storageClassType: \"(?P<stored>\w+)\",$",
    re.MULTILINE,
)
# Computed only. Simple ones are getters, collections of objects and maps are fields made by the constructor.
_COMPUTED = re.compile(
    r"// (?P<name>\w+) - computed: true, optional: false, required: false\n\s+"
    r"(?:get \w+\(\) \{\n\s+return (?P<getter>.+);|this\.\w+ = new (?:\w+\.)?(?P<made>\w+)\(this, \"\w+\"(?:, (?P<set>\w+))?\);)"
)
_FLAGS = re.compile(r"// (\w+) - computed: (\w+), optional: (\w+), required: (\w+)\n")
_GETTERS: dict[str, Type] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
}
_MAPS = {"StringMap": "string", "NumberMap": "number", "BooleanMap": "bool"}
_SCALARS = {"string": "string", "number": "number", "boolean": "bool"}
_ROOTS = ("TerraformResource", "TerraformDataSource", "TerraformProvider")


class UnknownShapeError(Exception):
    """The generated code says something that this reader has not learnt; the message says where."""


def folder(provider: str, address: str) -> str:
    """The folder of a package that describes `aws_vpc`, `data.aws_vpc`, or, for the provider's own name, its settings."""
    if address == provider:
        return "provider"
    short = address.removeprefix("data.").removeprefix(f"{provider}_").replace("_", "-")
    return f"data-{provider}-{short}" if address.startswith("data.") else short


def provider_schema(provider: str, sources: Mapping[str, Iterable[str]]) -> pb.GetProviderSchema.Response:
    """A provider's answer to "what is your schema?", from the JavaScript files of each address in `sources`."""
    schemas = {address: pb.Schema(block=_Resource(address, files).block()) for address, files in sources.items()}
    return pb.GetProviderSchema.Response(
        provider=schemas.get(provider, pb.Schema(block=pb.Schema.Block())),
        server_capabilities=pb.ServerCapabilities(get_provider_schema_optional=True),  # once is enough
        resource_schemas={a: s for a, s in schemas.items() if a != provider and not a.startswith("data.")},
        data_source_schemas={a.removeprefix("data."): s for a, s in schemas.items() if a.startswith("data.")},
    )


class _Resource:
    """One resource's classes (itself and one for each nested block) and the functions that list a block's arguments."""

    def __init__(self, address: str, files: Iterable[str]) -> None:
        self.address = address
        text = "\n".join(files)
        self.bodies = {match[1]: match[0] for match in _CLASS.finditer(text)}
        self.mappers = {_key(match[1]): match[0] for match in _MAPPER.finditer(text)}
        self.root = next(match[1] for match in _CLASS.finditer(text) if match[2] in _ROOTS)

    def block(self) -> pb.Schema.Block:
        body = self.bodies[self.root]
        return self._members(body, body[body.index("synthesizeHclAttributes()") :])

    def _nested(self, name: str) -> pb.Schema.Block:
        """Of a block or object whose generated interface has this name."""
        return self._members(self.bodies.get(f"{name}OutputReference"), self.mappers.get(_key(name), ""))

    def _members(self, body: str | None, arguments: str) -> pb.Schema.Block:
        """`body` is None for the blocks of a provider's settings: nothing of theirs is ever read, and all is optional."""
        found = pb.Schema.Block()
        required = {match[1] for match in _FLAGS.finditer(body or "") if match[4] == "true"}
        for match in _ARGUMENT.finditer(arguments):
            name = match["name"]
            if name == "alias" and self.root.endswith("Provider"):
                continue  # Terraform's own
            needed = name in required or (
                body is not None and match["stored"] in _simple() and f"reset{_camel(name)}()" not in body
            )
            if match["block"] == "true":
                found.block_types.append(self._block_type(match, body, needed))
            else:
                attribute = pb.Schema.Attribute(name=name, type=_json(self._argument_type(match)))
                attribute.required, attribute.optional = needed, not needed
                # Every resource gets an id, also where it may be given one; and a data source answers what it was not asked.
                answered = name == "id" or self.address.startswith("data.")
                attribute.computed = answered and not needed and body == self.bodies[self.root]
                found.attributes.append(attribute)
        for name, of in self._computed(body or ""):
            found.attributes.append(pb.Schema.Attribute(name=name, type=_json(of), computed=True))
        return found

    def _block_type(self, match: re.Match[str], body: str | None, needed: bool) -> pb.Schema.NestedBlock:
        name, stored, nesting = match["name"], match["stored"], pb.Schema.NestedBlock.NestingMode
        if match["kind"] == "struct":  # timeouts
            return pb.Schema.NestedBlock(type_name=name, block=self._nested(stored), nesting=nesting.SINGLE)
        made = re.search(rf"new (?:\w+\.)?(\w+)\(this, \"{name}\"(?:, \w+)?\)", body or "")
        one = made is not None and made[1].endswith("OutputReference")
        return pb.Schema.NestedBlock(
            type_name=name,
            block=self._nested(stored.removesuffix("List")),
            nesting=nesting.SET if match["kind"] == "set" else nesting.LIST,
            min_items=int(needed),
            max_items=int(one),
        )

    def _argument_type(self, match: re.Match[str]) -> Type:
        stored, kind = match["stored"], match["kind"]
        if kind == "simple" and stored in _SCALARS:
            return _SCALARS[stored]
        element = _SCALARS.get(re.sub(r"(List|Map)$", "", stored))
        if element and kind in ("list", "set", "map"):
            return [kind, element]
        if kind in ("list", "set") and f"{stored.removesuffix('List')}OutputReference" in self.bodies:
            return [kind, self._object(stored.removesuffix("List"))]
        if kind == "struct" and f"{stored}OutputReference" in self.bodies:
            return self._object(stored)
        raise UnknownShapeError(f"{self.address}.{match['name']}: {kind} of {stored}")

    def _computed(self, body: str) -> Iterator[tuple[str, Type]]:
        announced = {m[1] for m in _FLAGS.finditer(body) if m.groups()[1:] == ("true", "false", "false")}
        for match in _COMPUTED.finditer(body):
            announced.discard(match["name"])
            yield match["name"], self._computed_type(match)
        if announced:
            raise UnknownShapeError(f"{self.address}: {', '.join(sorted(announced))}: computed, of no known form")

    def _computed_type(self, match: re.Match[str]) -> Type:
        if match["getter"]:
            called = re.search(r"\.get(\w+)Attribute\(", match["getter"])
            if called is None or called[1] not in _GETTERS:
                raise UnknownShapeError(f"{self.address}.{match['name']}: {match['getter']}")
            of = _GETTERS[called[1]]
            return ["set", of[1]] if "tolist(" in match["getter"] and isinstance(of, list) else of
        made = match["made"]
        if made in _MAPS:
            return ["map", _MAPS[made]]
        if f"{made.removesuffix('List')}OutputReference" not in self.bodies:
            raise UnknownShapeError(f"{self.address}.{match['name']}: {made}")
        return ["set" if match["set"] == "true" else "list", self._object(made.removesuffix("List"))]

    def _object(self, name: str) -> Type:
        members = self._nested(name)
        fields: dict[str, Type] = {one.name: json.loads(one.type) for one in members.attributes}
        for one in members.block_types:
            fields[one.type_name] = ["list", self._object(name + _camel(one.type_name))]
        return ["object", fields]


def _simple() -> frozenset[str]:
    """What an argument that is no object is stored as; only these tell by a `reset` method that they may be left out."""
    return frozenset(f"{scalar}{many}" for scalar in _SCALARS for many in ("", "List", "Map"))


def _key(name: str) -> str:
    return name.lower()  # functions begin with a small letter, classes with a capital one


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _json(of: Type) -> bytes:
    return json.dumps(of).encode()
