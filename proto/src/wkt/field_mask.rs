//! `google.protobuf.FieldMask`: which fields of a message a call is about.
//!
//! In JSON it is protobuf's text (`"name,metadata.location"`) or the object that the API reference shows
//! (`{"paths": ["name", "metadata.location"]}`); the text is what is written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Fields of the contract that are maps: what follows one of them in a path is a key, which is the user's own text.
const MAP_FIELDS: [&str; 2] = ["metadata", "labels"];

/// Most paths of a mask in JSON. No message has as many fields; who reads the mask has a bound of its own, and says it
/// better. This one is for masks that are made to cost time.
const MAX_PATHS: usize = 10_000;

/// A path longer than this is left as it is written: it names nothing, and converting it would cost time.
const MAX_PATH_BYTES: usize = 4_096;

/// A list of paths such as `name` or `metadata.location`, with the names as the `.proto` files write them.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FieldMask {
    /// The paths. `metadata.location` names one key of a map.
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// Applies `convert` to the names of a path, not to the key of a map in it.
fn convert_names(path: &str, convert: fn(&str, &mut String)) -> String {
    if path.len() > MAX_PATH_BYTES {
        return path.to_owned();
    }
    let mut converted = String::with_capacity(path.len() + 8);
    let mut rest = path;
    loop {
        let (name, after) = rest.split_once('.').map_or((rest, None), |(name, after)| (name, Some(after)));
        convert(name, &mut converted);
        let Some(after) = after else { return converted };
        converted.push('.');
        if MAP_FIELDS.contains(&name) {
            converted.push_str(after);
            return converted;
        }
        rest = after;
    }
}

fn to_snake_case(name: &str, out: &mut String) {
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(character.to_ascii_lowercase());
    }
}

fn to_lower_camel_case(name: &str, out: &mut String) {
    let mut raise = false;
    for character in name.chars() {
        match character {
            '_' => raise = true,
            _ if raise => {
                out.push(character.to_ascii_uppercase());
                raise = false;
            }
            _ => out.push(character),
        }
    }
}

impl Serialize for FieldMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let paths: Vec<String> = self.paths.iter().map(|path| convert_names(path, to_lower_camel_case)).collect();
        serializer.serialize_str(&paths.join(","))
    }
}

struct FieldMaskVisitor;

impl<'de> Visitor<'de> for FieldMaskVisitor {
    type Value = FieldMask;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field mask: \"name,metadata.location\" or {\"paths\": [\"name\", \"metadata.location\"]}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<FieldMask, E> {
        let paths = text.split(',').filter(|path| !path.is_empty()).take(MAX_PATHS + 1);
        let paths: Vec<String> = paths.map(|path| convert_names(path, to_snake_case)).collect();
        if paths.len() > MAX_PATHS {
            return Err(too_many());
        }
        Ok(FieldMask { paths })
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<FieldMask, M::Error> {
        let mut paths: Option<Paths> = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "paths" {
                map.next_value::<IgnoredAny>()?;
            } else if paths.is_some() {
                return Err(M::Error::duplicate_field("paths"));
            } else {
                paths = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
            }
        }
        let Paths(paths) = paths.unwrap_or_default();
        Ok(FieldMask { paths: paths.iter().map(|path| convert_names(path, to_snake_case)).collect() })
    }
}

fn too_many<E: Error>() -> E {
    E::custom(format_args!("a field mask with more than {MAX_PATHS} paths"))
}

/// The array in the object.
#[derive(Default)]
struct Paths(Vec<String>);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathsVisitor;

        impl<'de> Visitor<'de> for PathsVisitor {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of paths")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = sequence.next_element()? {
                    if paths.len() == MAX_PATHS {
                        return Err(too_many());
                    }
                    paths.push(path);
                }
                Ok(Paths(paths))
            }
        }

        deserializer.deserialize_seq(PathsVisitor)
    }
}

impl<'de> Deserialize<'de> for FieldMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldMaskVisitor)
    }
}
