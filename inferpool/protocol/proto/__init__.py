"""Messages of the Open Inference Protocol over gRPC, built from `inference.binpb`.

A pool of descriptors of our own: tritonclient registers messages of the same names in the default
one, and whoever came second would fail. Built at run time, the messages fit every protobuf
release, where generated code fits one or two.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
_COMPILED: Final = Path(__file__).with_name("inference.binpb")


@cache
def messages() -> dict[str, Any]:
    """Message classes by their names. ImportError without protobuf (the extra `grpc`)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    files = descriptor_pb2.FileDescriptorSet.FromString(_COMPILED.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}")
        )
        for file in files.file
        for message in file.message_type
    }
