//! What can go wrong around a run, before and after the heartbeats: each error says which value and what to do.
use std::path::PathBuf;

use crate::code::Code;

/// A failure that ends the program or the test that uses this library. What single heartbeats met is counted, not raised.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot use the URL {url:?}: {why}")]
    Url { url: String, why: &'static str },

    #[error("cannot use {what} as a header value: it has characters that HTTP does not allow")]
    Token { what: &'static str },

    #[error("could not reach {authority}; is the server running there?")]
    Unreachable {
        authority: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("the server refused to register {device_id:?} ({code}: {message}); is the key an admin key?")]
    Registration { device_id: String, code: Code, message: String },

    #[error(
        "{device_id:?} is registered already and its key is not known here; leave out --id-prefix for a fresh fleet, \
         choose another prefix, or give the file that holds its keys with --keys"
    )]
    KeyUnknown { device_id: String },

    #[error("could not {operation} the keys file {path:?}; choose another with --keys")]
    KeysFile {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("cannot {operation}")]
    Io {
        operation: String,
        #[source]
        source: std::io::Error,
    },

    #[error("ClickHouse at {authority} did not answer the audit's query")]
    ClickHouse {
        authority: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("ClickHouse refused the audit's query (HTTP {status}): {message}")]
    Query { status: u16, message: String },

    #[error("ClickHouse answered the audit with a row that is none: {row:?}")]
    Row { row: String },

    #[error("the server could not {operation}")]
    Call {
        operation: &'static str,
        #[source]
        source: crate::wire::CallError,
    },

    #[error("{what}; {todo}")]
    Setup { what: String, todo: &'static str },
}
