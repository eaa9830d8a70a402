// Asks a server for its own schema, so that the tests need neither proto files nor generated code.
import { create, createFileRegistry, fromBinary, fromJson } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";

// What is needed of grpc/reflection/v1/reflection.proto (fields have the numbers of that file).
const REFLECTION = {
  name: "reflection.proto",
  package: "grpc.reflection.v1",
  syntax: "proto3",
  messageType: [
    {
      name: "ServerReflectionRequest",
      field: [
        { name: "file_containing_symbol", number: 4, type: "TYPE_STRING", label: "LABEL_OPTIONAL", oneofIndex: 0 },
        { name: "list_services", number: 7, type: "TYPE_STRING", label: "LABEL_OPTIONAL", oneofIndex: 0 },
      ],
      oneofDecl: [{ name: "message_request" }],
    },
    {
      name: "FileDescriptorResponse",
      field: [{ name: "file_descriptor_proto", number: 1, type: "TYPE_BYTES", label: "LABEL_REPEATED" }],
    },
    { name: "ServiceResponse", field: [{ name: "name", number: 1, type: "TYPE_STRING", label: "LABEL_OPTIONAL" }] },
    {
      name: "ListServiceResponse",
      field: [
        {
          name: "service",
          number: 1,
          type: "TYPE_MESSAGE",
          typeName: ".grpc.reflection.v1.ServiceResponse",
          label: "LABEL_REPEATED",
        },
      ],
    },
    {
      name: "ServerReflectionResponse",
      field: [
        {
          name: "file_descriptor_response",
          number: 4,
          type: "TYPE_MESSAGE",
          typeName: ".grpc.reflection.v1.FileDescriptorResponse",
          label: "LABEL_OPTIONAL",
          oneofIndex: 0,
        },
        {
          name: "list_services_response",
          number: 6,
          type: "TYPE_MESSAGE",
          typeName: ".grpc.reflection.v1.ListServiceResponse",
          label: "LABEL_OPTIONAL",
          oneofIndex: 0,
        },
      ],
      oneofDecl: [{ name: "message_response" }],
    },
  ],
  service: [
    {
      name: "ServerReflection",
      method: [
        {
          name: "ServerReflectionInfo",
          inputType: ".grpc.reflection.v1.ServerReflectionRequest",
          outputType: ".grpc.reflection.v1.ServerReflectionResponse",
          clientStreaming: true,
          serverStreaming: true,
        },
      ],
    },
  ],
};

/** Gives the names of all services, and a registry with those of them whose name starts with `prefix`. */
export async function reflect(transport, prefix) {
  const schema = createFileRegistry(
    create(FileDescriptorSetSchema, { file: [fromJson(FileDescriptorProtoSchema, REFLECTION)] }),
  );
  const client = createClient(schema.getService("grpc.reflection.v1.ServerReflection"), transport);
  async function ask(messageRequest) {
    async function* requests() {
      yield { messageRequest };
    }
    for await (const response of client.serverReflectionInfo(requests())) {
      return response.messageResponse;
    }
    throw new Error("reflection gave no answer");
  }
  const listed = await ask({ case: "listServices", value: "" });
  const services = listed.value.service.map((service) => service.name);
  const files = new Map();
  for (const name of services.filter((name) => name.startsWith(prefix))) {
    const found = await ask({ case: "fileContainingSymbol", value: name });
    for (const bytes of found.value.fileDescriptorProto) {
      const file = fromBinary(FileDescriptorProtoSchema, bytes);
      files.set(file.name, file);
    }
  }
  // A file comes after those that it imports.
  const ordered = [];
  const place = (name) => {
    const file = files.get(name);
    if (file === undefined || ordered.includes(file)) return;
    file.dependency.forEach(place);
    ordered.push(file);
  };
  [...files.keys()].forEach(place);
  return { services, registry: createFileRegistry(create(FileDescriptorSetSchema, { file: ordered })) };
}
