//! `google.protobuf.FieldMask`: which fields of a message a call is about.
//!
//! In JSON it is protobuf's text (`"name,metadata.location"`) or the object that the API reference shows
//! (`{"paths": ["name", "metadata.location"]}`); the text is what is written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Fields of the contract that are maps: what follows one of them in a path is a key, which is the user's own text.
const MAP_FIELDS: [&str; 2] = ["metadata", "labels"];

/// A list of paths such as `name` or `metadata.location`, with the names as the `.proto` files write them.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FieldMask {
    /// The paths. `metadata.location` names one key of a map.
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// Applies `convert` to the names of a path, not to the key of a map in it.
fn convert_names(path: &str, convert: fn(&str, &mut String)) -> String {
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

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FieldMask, E> {
        let paths = text.split(',').filter(|path| !path.is_empty());
        Ok(FieldMask { paths: paths.map(|path| convert_names(path, to_snake_case)).collect() })
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<FieldMask, M::Error> {
        let mut paths: Option<Vec<String>> = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "paths" {
                map.next_value::<IgnoredAny>()?;
            } else if paths.is_some() {
                return Err(serde::de::Error::duplicate_field("paths"));
            } else {
                paths = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
            }
        }
        let paths = paths.unwrap_or_default();
        Ok(FieldMask { paths: paths.iter().map(|path| convert_names(path, to_snake_case)).collect() })
    }
}

impl<'de> Deserialize<'de> for FieldMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldMaskVisitor)
    }
}
