//! Who is calling, what they may do, and how often: keys, principals, permissions and rate limits.
//!
//! A request passes through here in four pure steps, none of which touches the network or a file:
//!
//! 1. [`credential::from_headers`] reads `Authorization` or `X-API-Key` and hashes what it finds;
//! 2. [`Credential::claim`] says whose key it looks like: the admin's, a device's, or none;
//! 3. the caller turns a device key's [`KeyHash`] into a [`Principal`] (from its directory, or the store);
//! 4. [`permission::authorize`] compares the method's [`Rule`] with the principal.
//!
//! [`rate_limit`] stands beside them: it knows buckets, not people.
pub mod admin_key;
pub mod credential;
pub mod key;
pub mod permission;
pub mod principal;
pub mod rate_limit;

pub use admin_key::{load_or_create_admin_key, AdminKey, AdminKeyError};
pub use credential::{Claim, Credential, CredentialError};
pub use key::{ApiKey, InvalidApiKey, KeyHash, KeyKind};
pub use permission::{authorize, required_permission, rule, DeviceAccess, Permission, Rule};
pub use principal::Principal;
