//! Makes the Rust side of the contract from `fleetd/v1/*.proto`, with no tool to install: messages (prost), their
//! protobuf JSON (pbjson), the descriptors that reflection serves, and a table of all methods.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use prost_types::method_options::IdempotencyLevel;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::prost::Message as _;
use protox::prost_reflect::DescriptorPool;

const PACKAGE: &str = "fleetd.v1";
const PROTO_DIR: &str = "fleetd/v1";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTO_DIR}");

    let mut compiler = compile(&root)?;
    let described = compiler.file_descriptor_set();
    let secrets = messages_with_secrets(&compiler.descriptor_pool());
    generate_messages(&described, &secrets, &out)?;
    generate_json(&described, &out)?;
    fs::write(out.join("methods.rs"), method_table(&described)?)?;
    fs::write(out.join("redacted.rs"), redacted_debug(&secrets)?)?;
    // Encoded by the compiler itself: prost-types does not know every option and would drop some.
    fs::write(out.join("descriptors.bin"), compiler.include_source_info(false).encode_file_descriptor_set())?;
    Ok(())
}

/// Parses and links every file of the package, imports and comments included.
fn compile(root: &Path) -> Result<protox::Compiler, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root.join(PROTO_DIR))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    // A folder is listed in no order; the output must not depend on it.
    files.sort();
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    Ok(compiler)
}

fn generate_messages(described: &FileDescriptorSet, secrets: &[WithSecrets], out: &Path) -> Result<(), Box<dyn Error>> {
    let mut config = prost_build::Config::new();
    config
        .out_dir(out)
        .bytes(["."])
        // Sorted maps make equal messages equal bytes.
        .btree_map(["."])
        .enable_type_names()
        .skip_debug(secrets.iter().map(|message| format!(".{PACKAGE}.{}", message.name)))
        .compile_well_known_types()
        .extern_path(".google.protobuf", "crate::wkt");
    config.compile_fds(described.clone())?;
    Ok(())
}

/// A message that holds something no log may show.
struct WithSecrets {
    name: String,
    /// All its fields, each with whether it is secret (`debug_redact`).
    fields: Vec<(String, bool)>,
}

fn messages_with_secrets(pool: &DescriptorPool) -> Vec<WithSecrets> {
    let is_secret = |options: protox::prost_reflect::DynamicMessage| {
        options.get_field_by_name("debug_redact").and_then(|option| option.as_bool()).unwrap_or_default()
    };
    pool.all_messages()
        .filter(|message| message.package_name() == PACKAGE)
        .map(|message| {
            let fields = message.fields().map(|field| (field.name().to_owned(), is_secret(field.options())));
            WithSecrets { name: message.name().to_owned(), fields: fields.collect() }
        })
        .filter(|message| message.fields.iter().any(|(_, secret)| *secret))
        .collect()
}

/// Writes `Debug` for messages with secrets, so that a message in a log line cannot give one away.
fn redacted_debug(secrets: &[WithSecrets]) -> Result<String, std::fmt::Error> {
    let mut code = String::new();
    for WithSecrets { name, fields } in secrets {
        writeln!(code, "impl std::fmt::Debug for {name} {{")?;
        writeln!(code, "    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{")?;
        writeln!(code, "        f.debug_struct(\"{name}\")")?;
        for (field, secret) in fields {
            let value = if *secret { "format_args!(\"[redacted]\")".to_owned() } else { format!("self.{field}") };
            writeln!(code, "            .field(\"{field}\", &{value})")?;
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    Ok(code)
}

/// Runs pbjson, then makes its code call this crate's readers: pbjson's own refuse the `null` that protobuf JSON
/// allows for every field, and their errors say neither what was expected nor what was found.
fn generate_json(described: &FileDescriptorSet, out: &Path) -> Result<(), Box<dyn Error>> {
    pbjson_build::Builder::new()
        .out_dir(out)
        .register_descriptors(&described.encode_to_vec())?
        .btree_map(["."])
        .extern_path(".google.protobuf", "crate::wkt")
        .ignore_unknown_fields()
        .build(&[format!(".{PACKAGE}")])?;

    let path = out.join(format!("{PACKAGE}.serde.rs"));
    let mut code = fs::read_to_string(&path)?;
    for (theirs, ours) in [
        ("::pbjson::private::", "crate::json::read::"),
        ("pbjson::private::base64::encode", "crate::json::read::encode_base64"),
        ("map_.next_value", "map_.next_value_or_default"),
        // serde writes "expected" before it.
        ("\"expected one of: {:?}\", &FIELDS", "\"one of {}\", FIELDS.join(\", \")"),
    ] {
        if !code.contains(theirs) {
            return Err(format!("pbjson-build no longer writes `{theirs}`: adapt the rewriting in build.rs").into());
        }
        code = code.replace(theirs, ours);
    }
    fs::write(path, code)?;
    Ok(())
}

/// Writes `METHODS`, in the order of the files. A method without its line "Permission: ..." stops the build, so that
/// no call can exist that nobody thought about.
fn method_table(described: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut table = String::from("&[\n");
    for file in described.file.iter().filter(|file| file.package() == PACKAGE) {
        for (service_at, service) in file.service.iter().enumerate() {
            for (method_at, method) in service.method.iter().enumerate() {
                let (service, name) = (service.name(), method.name());
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "Unary",
                    (false, true) => "ServerStreaming",
                    (true, false) => "ClientStreaming",
                    (true, true) => "BidiStreaming",
                };
                let level = method.options.as_ref().map(|options| options.idempotency_level()).unwrap_or_default();
                let no_side_effects = level == IdempotencyLevel::NoSideEffects;
                let permission = permission(file, service_at, method_at)
                    .ok_or_else(|| format!("{service}.{name}: its comment has no line \"Permission: ...\""))?;
                writeln!(
                    table,
                    "    Method {{ path: \"{PACKAGE}.{service}/{name}\", service: \"{PACKAGE}.{service}\", \
                     name: \"{name}\", kind: MethodKind::{kind}, no_side_effects: {no_side_effects}, \
                     permission: \"{permission}\" }},"
                )?;
            }
        }
    }
    table.push_str("]\n");
    Ok(table)
}

fn permission(file: &FileDescriptorProto, service_at: usize, method_at: usize) -> Option<&str> {
    // Field numbers of FileDescriptorProto.service and ServiceDescriptorProto.method.
    let path = [6, i32::try_from(service_at).ok()?, 2, i32::try_from(method_at).ok()?];
    let location = file.source_code_info.as_ref()?.location.iter().find(|location| location.path == path)?;
    location.leading_comments().lines().find_map(|line| line.trim().strip_prefix("Permission: "))
}
