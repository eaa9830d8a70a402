//! The query language of lists, deployments, streams and analytics: which devices ([`Filter`]), in which order
//! ([`OrderBy`]), from which place on ([`PageToken`]), and which of their fields an update changes
//! ([`DeviceMask`]).
//!
//! Pure: text in, values out. What a device's fields hold comes through [`Subject`]; the fleet index evaluates the
//! same expressions column by column. Both leave the meaning of one test to [`Condition`], so that they cannot
//! disagree about it, and a property test holds them to each other.
//!
//! Everything that comes in is bounded before it is looked at, and parsing is linear in its length.
mod condition;
mod error;
mod field;
mod field_mask;
mod filter;
mod order;
mod page_token;
mod parser;
mod values;
mod version;

pub use condition::{Comparison, Condition, Operator, Pattern, Shape, StateSet, TimePoint};
pub(crate) use error::suggestion;
pub use error::QueryError;
pub use field::{Field, Kind, NumberField, TextField};
pub use field_mask::{DeviceMask, DevicePath, MaskError, SYSTEM_INFO_FIELDS};
pub use filter::{Expr, Filter, Subject, Test};
pub use order::{Direction, OrderBy, SortKey, SortValue};
pub use page_token::{Digest, PageToken, TokenError, TokenSecret, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
pub use version::compare_versions;

/// Longest filter or order in bytes. A filter that names a hundred devices by id fits; what is longer is a program's
/// mistake, and refused before it is read.
pub const MAX_QUERY_BYTES: usize = 16 << 10;

/// Deepest nesting of parentheses and NOT. People write 2 or 3; the bound keeps parsing and evaluation, which
/// recurse, far from the end of the stack.
pub const MAX_DEPTH: usize = 32;

/// Most values that a filter may compare with, over all its tests: each costs time for each device.
pub const MAX_VALUES: usize = 1_000;

/// Most keys of an order. Each is kept in the page token.
pub const MAX_SORT_KEYS: usize = 8;

#[cfg(test)]
mod tests;
