"""Calls fleetd with Google's own gRPC client, knowing no proto file: everything is learnt by reflection.

Usage: interop.py ADDRESS ADMIN_KEY. Exits with 0 when every promise holds; else prints which one did not.
"""

import hashlib
import os
import sys
import tempfile
import time

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

DEVICE = "rpi-001"
REGISTER = {
    "device_id": DEVICE,
    "device_name": "Raspberry Pi 001",
    "device_type": "raspberry-pi",
    "version": "1.0.0",
    "system_info": {"os": "Linux", "arch": "arm64", "cpu_cores": 4, "memory_mb": 4096},
}
HEARTBEAT = {
    "device_id": DEVICE,
    "status": {"state": "ONLINE", "uptime_seconds": 3600, "last_boot": "2024-01-01T12:00:00Z"},
    "stats": {"cpu_percent": 25.5, "memory_used_mb": 1024, "disk_used_gb": 10.5},
}
SERVICES = {
    "fleetd.v1.DeviceService",
    "fleetd.v1.UpdateService",
    "fleetd.v1.AnalyticsService",
    "fleetd.v1.BinaryService",
}
DEADLINE_SECONDS = 10


class Fleet:
    """A client whose messages are built from what the server's reflection says."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def call(self, rpc, fields, key=None, header="authorization", **options):
        """Calls a unary RPC named SERVICE/METHOD; gives the answer as a dict, and the call."""
        service, name = rpc.split("/")
        method = self.pool.FindServiceByName("fleetd.v1." + service).FindMethodByName(name)
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict(fields, request)
        stub = self.channel.unary_unary(
            f"/fleetd.v1.{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        metadata = [("x-request-id", "python-1")]
        if key is not None:
            metadata.append((header, f"Bearer {key}" if header == "authorization" else key))
        options.setdefault("timeout", DEADLINE_SECONDS)
        answer, call = stub.with_call(request, metadata=metadata, **options)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True), call

    def refused(self, rpc, fields, key=None, **options):
        """Calls an RPC that must fail; gives the error."""
        try:
            answer, _ = self.call(rpc, fields, key, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{rpc} {fields} was served: {answer}")


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def expect_code(error, code, part_of_message=""):
    expect(error.code() == code, f"{error.code()} in place of {code}: {error.details()}")
    expect(part_of_message in error.details(), f"{part_of_message!r} is not in {error.details()!r}")


def reflection_lists_every_service(fleet):
    listed = set(fleet.database.get_services())
    expect(SERVICES <= listed, f"{SERVICES - listed} not among {listed}")
    device_service = fleet.pool.FindServiceByName("fleetd.v1.DeviceService")
    expect("Heartbeat" in device_service.methods_by_name, "DeviceService has no Heartbeat")
    request = fleet.pool.FindMessageTypeByName("fleetd.v1.HeartbeatRequest")
    numbers = [request.fields_by_name[name].number for name in ("device_id", "status", "stats", "processes")]
    expect(numbers == [1, 2, 3, 4], f"the reference's fields have the numbers {numbers}")


def a_device_registers_reports_and_is_read(fleet, admin):
    registered, call = fleet.call("DeviceService/RegisterDevice", REGISTER, admin)
    expect(registered["device_id"] == DEVICE, registered)
    headers = dict(call.initial_metadata())
    expect(headers.get("x-request-id") == "python-1", f"the request id is not echoed: {headers}")
    key = registered["api_key"]
    for header in ("authorization", "x-api-key"):
        heartbeat, call = fleet.call("DeviceService/Heartbeat", HEARTBEAT, key, header)
        expect(heartbeat["acknowledged"] is True, heartbeat)
        headers = dict(call.initial_metadata())
        expect(headers.get("x-ratelimit-limit") == "10", f"no rate limit headers: {headers}")
    device, _ = fleet.call("DeviceService/GetDevice", {"device_id": DEVICE, "include_metrics": True}, key)
    expect(device["device"]["system_info"]["memory_mb"] == "4096", device)
    expect(device["device"]["status"] == "ONLINE", device)
    expect(device["metrics"]["stats"]["cpu_percent"] == 25.5, device)
    page, _ = fleet.call("DeviceService/ListDevices", {"page_size": 20}, admin)
    expect([found["id"] for found in page["devices"]] == [DEVICE], page)
    expect(page["total_count"] == 1, page)
    return key


def errors_carry_the_codes_of_the_reference(fleet, admin, key):
    refused, code = fleet.refused, grpc.StatusCode
    expect_code(refused("DeviceService/RegisterDevice", REGISTER, admin), code.ALREADY_EXISTS, DEVICE)
    expect_code(refused("DeviceService/ListDevices", {}), code.UNAUTHENTICATED, "Authentication required")
    expect_code(refused("DeviceService/ListDevices", {}, "no-such-key"), code.UNAUTHENTICATED)
    expect_code(refused("DeviceService/ListDevices", {}, key), code.PERMISSION_DENIED, "device:list")
    other = {"device_id": "rpi-002"}
    expect_code(refused("DeviceService/Heartbeat", other, key), code.PERMISSION_DENIED, "device:heartbeat")
    expect_code(refused("DeviceService/GetDevice", other, admin), code.NOT_FOUND, "rpi-002")
    expect_code(refused("DeviceService/RegisterDevice", {}, admin), code.INVALID_ARGUMENT, "device_id is empty")
    expect_code(refused("DeviceService/Heartbeat", {}, key), code.INVALID_ARGUMENT, "device_id is empty")
    expect_code(refused("DeviceService/ListDevices", {"page_size": -1}, admin), code.INVALID_ARGUMENT, "page_size")


def an_rpc_that_is_not_served_says_so(fleet, admin):
    service = fleet.pool.FindServiceByName("fleetd.v1.AnalyticsService")
    for name in ("GetDeviceHealth", "ExportData"):
        expect(name in service.methods_by_name, f"AnalyticsService has no {name}")
        try:
            fleet.call(f"AnalyticsService/{name}", {}, admin)
        except grpc.RpcError as error:
            served_later = error.code() == grpc.StatusCode.UNIMPLEMENTED and name in error.details()
            expect(served_later or error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {error}")
    try:
        fleet.channel.unary_unary("/fleetd.v1.DeviceService/Dance")(b"", timeout=DEADLINE_SECONDS)
    except grpc.RpcError as error:
        expect_code(error, grpc.StatusCode.UNIMPLEMENTED)
    else:
        raise AssertionError("a method that does not exist was served")


def health_is_told_and_watched(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "fleetd.v1.DeviceService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_SECONDS)
        expect(answer.status == serving, f"{service!r} is {answer.status}")
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE_SECONDS)
    except grpc.RpcError as error:
        expect_code(error, grpc.StatusCode.NOT_FOUND)
    else:
        raise AssertionError("a service that does not exist has a health")
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE_SECONDS)
    expect(next(watch).status == serving, "the first message of Watch")
    watch.cancel()


def compression_goes_both_ways(address, admin):
    with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
        fleet = Fleet(channel)
        large = dict(REGISTER, device_id="rpi-zip", metadata={f"note-{n}": "x" * 500 for n in range(50)})
        fleet.call("DeviceService/RegisterDevice", large, admin)
        device, _ = fleet.call("DeviceService/GetDevice", {"device_id": "rpi-zip"}, admin)
        expect(device["device"]["metadata"] == large["metadata"], "what was compressed came back different")


def a_deadline_holds(channel):
    # Nothing changes meanwhile, so after the first message only the deadline ends the stream.
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=0.5)
    next(watch)
    started = time.monotonic()
    try:
        next(watch)
    except grpc.RpcError as error:
        expect_code(error, grpc.StatusCode.DEADLINE_EXCEEDED)
        expect(time.monotonic() - started < DEADLINE_SECONDS, "the deadline came late")
    else:
        raise AssertionError("a second health without a change")


def many_calls_share_one_connection(fleet, admin):
    service = fleet.pool.FindServiceByName("fleetd.v1.DeviceService").FindMethodByName("GetDevice")
    request = message_factory.GetMessageClass(service.input_type)(device_id=DEVICE)
    stub = fleet.channel.unary_unary(
        "/fleetd.v1.DeviceService/GetDevice",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(service.output_type).FromString,
    )
    metadata = [("authorization", f"Bearer {admin}")]
    calls = [stub.future(request, metadata=metadata, timeout=DEADLINE_SECONDS) for _ in range(500)]
    expect(all(call.result().device.id == DEVICE for call in calls), "an answer of another call")


class BinaryStub:
    """What grpcio's generator makes of BinaryService, made of what reflection says."""

    def __init__(self, fleet, key):
        self.metadata = [("authorization", f"Bearer {key}")]
        service = fleet.pool.FindServiceByName("fleetd.v1.BinaryService")
        get = message_factory.GetMessageClass
        upload, download = (service.FindMethodByName(name) for name in ("UploadBinary", "DownloadBinary"))
        self.upload = fleet.channel.stream_unary(
            "/fleetd.v1.BinaryService/UploadBinary",
            request_serializer=get(upload.input_type).SerializeToString,
            response_deserializer=get(upload.output_type).FromString,
        )
        self.download = fleet.channel.unary_stream(
            "/fleetd.v1.BinaryService/DownloadBinary",
            request_serializer=get(download.input_type).SerializeToString,
            response_deserializer=get(download.output_type).FromString,
        )

    def UploadBinary(self, requests):
        return self.upload(requests, metadata=self.metadata)

    def DownloadBinary(self, request):
        return self.download(request, metadata=self.metadata)


class binary_pb2:
    """The reference's functions find their messages here, as in a generated module."""


# The two functions of the API reference, as printed.
def upload_binary(stub, file_path):
    def generate_chunks():
        # Send metadata first
        yield binary_pb2.UploadBinaryRequest(
            metadata=binary_pb2.BinaryMetadata(
                name="firmware.bin",
                version="2.0.0",
                platform="raspberry-pi"
            )
        )
        # Send file chunks
        with open(file_path, 'rb') as f:
            while True:
                chunk = f.read(1024 * 1024)  # 1MB chunks
                if not chunk:
                    break
                yield binary_pb2.UploadBinaryRequest(chunk=chunk)
    response = stub.UploadBinary(generate_chunks())
    return response


def download_binary(stub, binary_id, output_path):
    request = binary_pb2.DownloadBinaryRequest(
        binary_id=binary_id,
        chunk_size=1024 * 1024  # 1MB chunks
    )
    with open(output_path, 'wb') as f:
        for response in stub.DownloadBinary(request):
            if response.HasField('chunk'):
                f.write(response.chunk)


def the_references_upload_and_download_work_as_printed(fleet, admin, key):
    for name in ("UploadBinaryRequest", "BinaryMetadata", "DownloadBinaryRequest"):
        descriptor = fleet.pool.FindMessageTypeByName("fleetd.v1." + name)
        setattr(binary_pb2, name, message_factory.GetMessageClass(descriptor))
    with tempfile.TemporaryDirectory() as folder:
        sent, got = os.path.join(folder, "sent"), os.path.join(folder, "got")
        content = os.urandom(5 * 1024 * 1024 + 17)
        with open(sent, "wb") as file:
            file.write(content)
        response = upload_binary(BinaryStub(fleet, admin), sent)
        expect(response.checksum == "sha256:" + hashlib.sha256(content).hexdigest(), response)
        expect(response.size_bytes == len(content), response)
        download_binary(BinaryStub(fleet, key), response.binary_id, got)
        with open(got, "rb") as file:
            expect(file.read() == content, "the file came back different")
        try:
            upload_binary(BinaryStub(fleet, key), sent)
        except grpc.RpcError as error:
            expect_code(error, grpc.StatusCode.PERMISSION_DENIED, "update:create")
        else:
            raise AssertionError("a device uploaded a file")


def main(address, admin):
    started = time.monotonic()
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=DEADLINE_SECONDS)
        fleet = Fleet(channel)
        reflection_lists_every_service(fleet)
        key = a_device_registers_reports_and_is_read(fleet, admin)
        errors_carry_the_codes_of_the_reference(fleet, admin, key)
        an_rpc_that_is_not_served_says_so(fleet, admin)
        the_references_upload_and_download_work_as_printed(fleet, admin, key)
        health_is_told_and_watched(channel)
        a_deadline_holds(channel)
        many_calls_share_one_connection(fleet, admin)
    compression_goes_both_ways(address, admin)
    print(f"python: every promise held, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
