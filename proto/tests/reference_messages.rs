//! The messages that the API reference prints keep their names, numbers and types.
//!
//! `reference/messages.txt` holds them verbatim; each line is compared with the descriptors that reflection serves.

use std::collections::HashMap;

use fleetd_proto::{Method, MethodKind, FILE_DESCRIPTOR_SET, METHODS};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const REFERENCE: &str = include_str!("reference/messages.txt");

fn descriptors() -> FileDescriptorSet {
    prost::Message::decode(FILE_DESCRIPTOR_SET).expect("the descriptors decode")
}

fn messages() -> HashMap<String, DescriptorProto> {
    let files = descriptors().file.into_iter().filter(|file| file.package() == "fleetd.v1");
    files.flat_map(|file| file.message_type).map(|message| (message.name().to_owned(), message)).collect()
}

/// The type of a field as a `.proto` file writes it, without packages: `repeated Device`, `map<string, string>`.
fn written_type(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let short = field.type_name().rsplit('.').next().unwrap_or_default();
    if let Some(entry) = message.nested_type.iter().find(|nested| nested.name() == short) {
        if entry.options.as_ref().is_some_and(|options| options.map_entry()) {
            let [key, value] = &entry.field[..] else { panic!("{short} has a key and a value") };
            return format!("map<{}, {}>", written_type(entry, key), written_type(entry, value));
        }
    }
    let name = match field.r#type() {
        Type::Message | Type::Enum => short.to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("repeated {name}"),
        _ => name,
    }
}

/// One line of the reference: `repeated Command commands = 2;`, with a comment behind it or none.
fn parse_field(line: &str) -> Option<(String, &str, i32)> {
    let (declaration, number) = line.split(';').next()?.split_once(" = ")?;
    let (written, name) = declaration.rsplit_once(' ')?;
    Some((written.replace("google.protobuf.", ""), name, number.parse().ok()?))
}

#[test]
fn every_field_that_the_reference_prints_has_its_name_number_and_type() {
    let messages = messages();
    let (mut message, mut in_oneof, mut compared_messages, mut compared_fields) = (None, None, 0, 0);
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix("message ").and_then(|rest| rest.strip_suffix(" {")) {
            message = Some(messages.get(name).unwrap_or_else(|| panic!("the contract has no message {name}")));
            compared_messages += 1;
        } else if let Some(name) = line.strip_prefix("oneof ").and_then(|rest| rest.strip_suffix(" {")) {
            in_oneof = Some(name);
        } else if line == "}" {
            in_oneof = None;
        } else if let Some((written, name, number)) = parse_field(line) {
            let message = message.expect("a field stands in a message");
            let at = format!("{}.{name}", message.name());
            let field = message.field.iter().find(|field| field.name() == name);
            let field = field.unwrap_or_else(|| panic!("the contract has no field {at}"));
            assert_eq!(field.number(), number, "number of {at}");
            assert_eq!(written_type(message, field), written, "type of {at}");
            let oneof = field.oneof_index.map(|at| message.oneof_decl[at as usize].name());
            assert_eq!(oneof, in_oneof, "oneof of {at}");
            assert!(!field.proto3_optional(), "{at} has presence, which the reference does not print");
            compared_fields += 1;
        } else {
            assert_eq!(line, "", "a line that this test does not understand");
        }
    }
    assert_eq!((compared_messages, compared_fields), (32, 102), "all of the reference was read");
}

#[test]
fn what_the_contract_adds_to_a_message_of_the_reference_has_a_higher_number() {
    let printed: HashMap<&str, Vec<&str>> = REFERENCE
        .split("message ")
        .filter_map(|block| block.split_once(" {"))
        .map(|(name, body)| (name, body.lines().filter_map(parse_field).map(|(_, name, _)| name).collect()))
        .collect();
    for (name, printed) in printed {
        let message = &messages()[name];
        let (theirs, ours): (Vec<_>, Vec<_>) =
            message.field.iter().partition(|field| printed.iter().any(|printed| *printed == field.name()));
        let highest = theirs.iter().map(|field| field.number()).max();
        for field in ours {
            assert!(Some(field.number()) > highest, "{name}.{} is between those of the reference", field.name());
        }
    }
}

#[test]
fn every_method_of_the_reference_is_there_with_its_permission() {
    let printed = [
        ("DeviceService/RegisterDevice", MethodKind::Unary, "device:register"),
        ("DeviceService/ListDevices", MethodKind::Unary, "device:list"),
        ("DeviceService/GetDevice", MethodKind::Unary, "device:view"),
        ("DeviceService/UpdateDevice", MethodKind::Unary, "device:update"),
        ("DeviceService/DeleteDevice", MethodKind::Unary, "device:delete"),
        ("DeviceService/Heartbeat", MethodKind::Unary, "device:heartbeat"),
        ("UpdateService/CreateUpdate", MethodKind::Unary, "update:create"),
        ("UpdateService/DeployUpdate", MethodKind::Unary, "update:deploy"),
        ("UpdateService/GetDeploymentStatus", MethodKind::Unary, "update:view"),
        ("UpdateService/RollbackDeployment", MethodKind::Unary, "update:rollback"),
        ("AnalyticsService/GetMetrics", MethodKind::Unary, "analytics:view"),
        ("AnalyticsService/GetDeviceHealth", MethodKind::Unary, "analytics:view"),
        ("AnalyticsService/ExportData", MethodKind::Unary, "analytics:export"),
        ("BinaryService/UploadBinary", MethodKind::ClientStreaming, "update:create"),
        ("BinaryService/DownloadBinary", MethodKind::ServerStreaming, "update:view"),
    ];
    for (path, kind, permission) in printed {
        let method = Method::find(&format!("fleetd.v1.{path}")).unwrap_or_else(|| panic!("there is no {path}"));
        assert_eq!((method.kind, method.permission), (kind, permission), "{path}");
    }
}

#[test]
fn the_table_of_methods_is_what_the_descriptors_say() {
    let mut paths = Vec::new();
    for file in descriptors().file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("{}.{}/{}", file.package.as_deref().unwrap_or(""), service.name(), method.name());
                let entry = Method::find(&path).unwrap_or_else(|| panic!("the table has no {path}"));
                assert_eq!(format!("{}/{}", entry.service, entry.name), path);
                let streams = (method.client_streaming(), method.server_streaming());
                let expected = match entry.kind {
                    MethodKind::Unary => (false, false),
                    MethodKind::ServerStreaming => (false, true),
                    MethodKind::ClientStreaming => (true, false),
                    MethodKind::BidiStreaming => (true, true),
                };
                assert_eq!(streams, expected, "{path}");
                paths.push(path);
            }
        }
    }
    assert_eq!(paths, METHODS.iter().map(|method| method.path).collect::<Vec<_>>());
}

#[test]
fn methods_that_read_say_so_and_no_other_does() {
    for method in METHODS {
        let reads = ["Get", "List", "Plan", "Explain", "Download", "StreamEvents"]
            .iter()
            .any(|verb| method.name.starts_with(verb));
        assert_eq!(method.no_side_effects, reads, "{}", method.path);
    }
}

#[test]
fn the_descriptors_stand_alone_and_in_order() {
    let mut seen = Vec::new();
    for file in descriptors().file {
        for import in &file.dependency {
            assert!(seen.contains(import), "{} comes before its import {import}", file.name());
        }
        assert!(file.source_code_info.is_none(), "{} carries comments", file.name());
        seen.push(file.name().to_owned());
    }
    for file in ["device", "update", "analytics", "binary", "common", "admin"] {
        assert!(seen.contains(&format!("fleetd/v1/{file}.proto")), "{file}.proto is missing");
    }
}
