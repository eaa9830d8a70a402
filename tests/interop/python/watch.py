"""Watches fleetd's health with Google's own gRPC client and prints each state on a line, until the server ends it.

Usage: watch.py ADDRESS. Exits with 0 when NOT_SERVING was told before the end.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(address):
    told = []
    with grpc.insecure_channel(address) as channel:
        try:
            for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=60):
                told.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
                print(told[-1], flush=True)
                if told[-1] == "NOT_SERVING":
                    break
        except grpc.RpcError as error:
            print(f"the watch ended with {error.code()}: {error.details()}", file=sys.stderr)
    sys.exit(0 if told[-1:] == ["NOT_SERVING"] else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
