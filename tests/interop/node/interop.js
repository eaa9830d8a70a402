// Calls fleetd with Connect's own client for Node.js: Connect (binary, JSON, GET), gRPC and gRPC-Web, over HTTP/1.1
// and HTTP/2 on the same port. Usage: node interop.js URL ADMIN_KEY. Exits with 0 when every promise holds.
import assert from "node:assert/strict";
import { inspect } from "node:util";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import {
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { reflect } from "./reflection.js";

const [baseUrl, adminKey] = process.argv.slice(2);
const DEADLINE_MS = 10_000;
const SESSIONS = [];

/** Every protocol on every HTTP version that can carry it. */
function transports() {
  const all = [];
  for (const httpVersion of ["1.1", "2"]) {
    const options = { baseUrl, httpVersion, defaultTimeoutMs: DEADLINE_MS };
    if (httpVersion === "2") {
      options.sessionManager = new Http2SessionManager(baseUrl);
      SESSIONS.push(options.sessionManager);
    }
    for (const useBinaryFormat of [true, false]) {
      const format = useBinaryFormat ? "binary" : "json";
      const add = (name, create, more = {}) =>
        all.push({
          name: `${name}-${format}-http${httpVersion}`,
          transport: create({ ...options, ...more, useBinaryFormat }),
          isConnect: name.startsWith("connect"),
        });
      add("connect", createConnectTransport);
      add("connect-get", createConnectTransport, { useHttpGet: true });
      add("connect-gzip", createConnectTransport, { sendCompression: compressionGzip, compressMinBytes: 0 });
      if (useBinaryFormat) {
        add("grpc-web", createGrpcWebTransport);
        if (httpVersion === "2") {
          add("grpc", createGrpcTransport);
          add("grpc-gzip", createGrpcTransport, { sendCompression: compressionGzip, compressMinBytes: 0 });
        }
      }
    }
  }
  return all;
}

function as(key, more = {}) {
  return { headers: { authorization: `Bearer ${key}`, "x-request-id": "node-1", ...more } };
}

/** The error of a call that must fail with `code`. */
async function refused(call, code, part = "") {
  try {
    const answer = await call;
    assert.fail(`served: ${inspect(answer)}`);
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    assert.equal(Code[error.code], Code[code], error.message);
    assert.ok(error.rawMessage.includes(part), `${part} is not in ${error.rawMessage}`);
    return error;
  }
}

async function aDeviceRegistersReportsAndIsRead(client, id) {
  const registered = await client.registerDevice(
    {
      deviceId: id,
      deviceName: "Raspberry Pi 001",
      deviceType: "raspberry-pi",
      version: "1.0.0",
      systemInfo: { os: "Linux", arch: "arm64", cpuCores: 4, memoryMb: 4096n },
    },
    as(adminKey),
  );
  assert.equal(registered.deviceId, id);
  const key = registered.apiKey;
  let headers;
  const heartbeat = await client.heartbeat(
    {
      deviceId: id,
      status: { state: 1, uptimeSeconds: 3600n },
      stats: { cpuPercent: 25.5, memoryUsedMb: 1024n, diskUsedGb: 10.5, metrics: { "queue.depth": 3 } },
    },
    { ...as(key), onHeader: (received) => (headers = received) },
  );
  assert.equal(heartbeat.acknowledged, true);
  assert.ok(heartbeat.nextHeartbeat.seconds >= 26n, "a time for the next heartbeat");
  assert.equal(headers.get("x-request-id"), "node-1");
  assert.equal(headers.get("x-ratelimit-limit"), "10");
  assert.equal(headers.get("x-ratelimit-remaining"), "9");
  assert.ok(Number(headers.get("x-ratelimit-reset")) >= Math.floor(Date.now() / 1000) - 1);
  const found = await client.getDevice({ deviceId: id, includeMetrics: true }, as(key));
  assert.equal(found.device.id, id);
  assert.equal(found.device.systemInfo.memoryMb, 4096n);
  assert.equal(found.device.status, 1);
  assert.equal(found.metrics.stats.metrics["queue.depth"], 3);
  const page = await client.listDevices({ pageSize: 100 }, as(adminKey));
  assert.ok(page.devices.some((device) => device.id === id));
  return key;
}

async function errorsHaveTheirCodes(client, id, key) {
  await refused(client.registerDevice({ deviceId: id }, as(adminKey)), Code.AlreadyExists, id);
  const anonymous = await refused(client.listDevices({}), Code.Unauthenticated, "Authentication required");
  assert.ok(anonymous.metadata.get("x-request-id"), "an error has a request id too");
  await refused(client.listDevices({}, as(key)), Code.PermissionDenied, "device:list");
  await refused(client.heartbeat({ deviceId: "another" }, as(key)), Code.PermissionDenied, "device:heartbeat");
  await refused(client.getDevice({ deviceId: "never-seen" }, as(adminKey)), Code.NotFound, "never-seen");
  await refused(client.heartbeat({}, as(key)), Code.InvalidArgument, "device_id is empty");
  await refused(client.listDevices({ pageSize: -1 }, as(adminKey)), Code.InvalidArgument, "page_size");
}

async function theEleventhHeartbeatIsRefused(client, id) {
  const { apiKey } = await client.registerDevice({ deviceId: id }, as(adminKey));
  for (let sent = 0; sent < 15; sent += 1) {
    try {
      await client.heartbeat({ deviceId: id }, as(apiKey));
    } catch (error) {
      assert.equal(Code[error.code], "ResourceExhausted", error.message);
      assert.ok(sent >= 10, `refused after ${sent}`);
      assert.ok(Number(error.metadata.get("retry-after")) >= 1, "no Retry-After");
      assert.equal(error.metadata.get("x-ratelimit-remaining"), "0");
      return;
    }
  }
  assert.fail("15 heartbeats in a moment and none was refused");
}

/** Connect's errors byte by byte, as its specification says, without its client. */
async function connectErrorsAreAsSpecified() {
  const url = `${baseUrl}/fleetd.v1.DeviceService/GetDevice`;
  const headers = { "content-type": "application/json", "connect-protocol-version": "1" };
  const response = await fetch(url, {
    method: "POST",
    headers: { ...headers, "x-api-key": adminKey },
    body: JSON.stringify({ deviceId: "never-seen" }),
  });
  assert.equal(response.status, 404);
  assert.equal(response.headers.get("content-type"), "application/json");
  const error = await response.json();
  assert.equal(error.code, "not_found");
  assert.equal(typeof error.message, "string");
  assert.ok(error.details === undefined || Array.isArray(error.details));
}

async function connectGetIsAGet() {
  const query = new URLSearchParams({ connect: "v1", encoding: "json", message: JSON.stringify({ pageSize: 1 }) });
  const response = await fetch(`${baseUrl}/fleetd.v1.DeviceService/ListDevices?${query}`, {
    headers: { "x-api-key": adminKey },
  });
  assert.equal(response.status, 200);
  assert.equal((await response.json()).devices.length, 1);
}

const over = transports();
const { services, registry } = await reflect(over.find(({ name }) => name === "grpc-binary-http2").transport, "fleetd.v1.");
for (const name of ["DeviceService", "UpdateService", "AnalyticsService", "BinaryService"]) {
  assert.ok(services.includes(`fleetd.v1.${name}`), `${name} is not among ${services}`);
}
const DeviceService = registry.getService("fleetd.v1.DeviceService");
assert.equal(DeviceService.method.listDevices.idempotency, 1, "ListDevices has no side effects");
for (const { name, transport } of over) {
  try {
    const client = createClient(DeviceService, transport);
    const key = await aDeviceRegistersReportsAndIsRead(client, `node-${name}`);
    await errorsHaveTheirCodes(client, `node-${name}`, key);
    await theEleventhHeartbeatIsRefused(client, `node-${name}-limit`);
  } catch (error) {
    throw new Error(`over ${name}`, { cause: error });
  }
}
await connectErrorsAreAsSpecified();
await connectGetIsAGet();
SESSIONS.forEach((session) => session.abort());
console.log(`node: every promise held over ${over.map(({ name }) => name).join(", ")}`);
process.exit(0);
