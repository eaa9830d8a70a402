//! Protobuf JSON for the messages of the contract: one way in, one way out, errors that name the field.
//!
//! What is read: lowerCamelCase and snake_case names; `null` as "not set"; numbers as numbers or strings; enum values
//! by name or number; base64 in either alphabet. Fields that are not known are skipped, as Connect's servers do.
//! What is written: lowerCamelCase, fields at their default left out, 64-bit integers as strings.
//!
//! Depth is bounded: serde_json refuses more than 128 levels, and skips unknown fields without recursion.

pub(crate) mod read;
mod write;

use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_path_to_error::{Path, Segment};

/// The longest quotation of a client's text in an error, in bytes: enough to know one's own value again, too little for
/// a hostile value of megabytes to fill answers and logs.
const MAX_QUOTED_BYTES: usize = 256;

/// Why a text is no JSON of a message: `stats.cpu_percent: invalid type: ..., expected a number at line 3 column 9`.
#[derive(Debug, thiserror::Error)]
#[error("{}{reason}", .field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct ReadError {
    field: Option<String>,
    reason: String,
}

impl ReadError {
    /// The path of the field that was refused, as the client spelled it, such as `processes[1].name`; `None` where the
    /// text as a whole is no JSON of the message.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

/// Why a message cannot be written as JSON: it holds a value that JSON has no form for, such as an enum number that
/// the contract does not name, or a time outside of the years 1 to 9999.
#[derive(Debug, thiserror::Error)]
#[error("write a message as json")]
pub struct WriteError(#[source] serde_json::Error);

/// Reads a message from its JSON form. An empty `text` is no JSON, and an error.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(text).map_err(|error| locate::<T>(text, error))
}

/// Writes a message in its JSON form.
pub fn to_vec<T: Serialize>(message: &T) -> Result<Vec<u8>, WriteError> {
    write::to_vec(message).map_err(WriteError)
}

/// Reads the text again, now keeping track of the field, which would slow down the reading of good texts.
fn locate<T: DeserializeOwned>(text: &[u8], error: serde_json::Error) -> ReadError {
    let mut reader = serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(located) => match field_of(located.path()) {
            Some(field) => ReadError { field: Some(field), reason: shorten(located.into_inner().to_string()) },
            None => ReadError { field: None, reason: shorten(error.to_string()) },
        },
        // What is wrong is not within a field: an empty text, or more text after the message.
        _ => ReadError { field: None, reason: shorten(error.to_string()) },
    }
}

/// The path in words; `None` for the message itself. What is wrong between two fields (a comma, a name that is no text)
/// is in the field around them, and shows as a `?` at the end of the path, which would tell nobody anything.
fn field_of(path: &Path) -> Option<String> {
    let nameless = path.iter().rev().take_while(|segment| matches!(segment, Segment::Unknown)).count();
    if path.iter().len() == nameless {
        return None;
    }
    let text = path.to_string();
    Some(shorten(text[..text.len() - ".?".len() * nameless].to_owned()))
}

/// Cuts the middle out of a long text: its end says what was expected, and where.
fn shorten(text: String) -> String {
    if text.len() <= 2 * MAX_QUOTED_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(MAX_QUOTED_BYTES);
    let tail = text.ceil_char_boundary(text.len() - MAX_QUOTED_BYTES);
    format!("{}[...]{}", &text[..head], &text[tail..])
}
