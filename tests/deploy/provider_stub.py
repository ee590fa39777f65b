"""A Terraform provider that knows its schema and nothing else: what `terraform validate` asks for, and `terraform test` where
every provider is mocked.

It is served from this process. Terraform is told where by TF_REATTACH_PROVIDERS, so nothing is installed, and nothing started for
each of hundreds of questions. The protocol is Terraform's (go-plugin over gRPC), its messages are the package tf's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from tf.gen import grpc_controller_pb2 as controller_pb
from tf.gen import grpc_controller_pb2_grpc as controller_rpc
from tf.gen import grpc_stdio_pb2_grpc as stdio_rpc
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

# Asked of a provider also where it is mocked; an empty answer agrees. Whatever else is asked fails, as unimplemented.
AGREES_TO = (
    "ValidateProviderConfig",
    "ValidateResourceConfig",
    "ValidateDataResourceConfig",
    "ConfigureProvider",
    "StopProvider",
    "GetFunctions",
)


@contextlib.contextmanager
def serve(schemas: Mapping[str, pb.GetProviderSchema.Response], sockets: Path) -> Generator[str]:
    """Serves providers by source address, like hashicorp/aws, with sockets in that folder. Yields TF_REATTACH_PROVIDERS' value."""
    servers: dict[str, grpc.Server] = {}
    for address, schema in schemas.items():
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        rpc.add_ProviderServicer_to_server(Stub(schema), server)
        controller_rpc.add_GRPCControllerServicer_to_server(_Controller(), server)
        stdio_rpc.add_GRPCStdioServicer_to_server(_Silent(), server)
        server.add_insecure_port(f"unix://{_socket(sockets, address)}")
        server.start()
        servers[address] = server
    try:
        yield json.dumps({f"registry.terraform.io/{address}": _where(_socket(sockets, address)) for address in schemas})
    finally:
        for server in servers.values():
            server.stop(grace=None)


def _socket(sockets: Path, address: str) -> Path:
    return sockets / f"{address.rpartition('/')[2]}.sock"


def _where(socket: Path) -> dict[str, Any]:
    return {
        "Protocol": "grpc",
        "ProtocolVersion": 6,
        "Pid": os.getpid(),
        "Test": True,  # Terraform does not end it
        "Addr": {"Network": "unix", "String": str(socket)},
    }


class Stub(rpc.ProviderServicer):
    """Answers for one provider. Terraform checks names, types and references against the schema by itself."""

    def __init__(self, schema: pb.GetProviderSchema.Response) -> None:
        self.schema = schema

    def GetProviderSchema(self, request: Any, context: Any) -> Any:
        return self.schema

    def GetMetadata(self, request: Any, context: Any) -> Any:
        metadata = pb.GetMetadata
        return metadata.Response(
            resources=[metadata.ResourceMetadata(type_name=name) for name in self.schema.resource_schemas],
            data_sources=[metadata.DataSourceMetadata(type_name=name) for name in self.schema.data_source_schemas],
        )

    def UpgradeResourceState(self, request: Any, context: Any) -> Any:
        return pb.UpgradeResourceState.Response(upgraded_state=pb.DynamicValue(json=request.raw_state.json))


def _agree(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda self, request, context: getattr(pb, name).Response()


for _name in AGREES_TO:
    setattr(Stub, _name, _agree(_name))


class _Controller(controller_rpc.GRPCControllerServicer):
    def Shutdown(self, request: Any, context: Any) -> Any:
        return controller_pb.Empty()


class _Silent(stdio_rpc.GRPCStdioServicer):
    def StreamStdio(self, request: Any, context: Any) -> Any:
        return iter(())
