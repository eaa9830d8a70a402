//! What a caller shows at the door: `Authorization: Bearer KEY` or `X-API-Key: KEY`.
//!
//! Pure functions over header values, so that HTTP/1.1, HTTP/2 and WebSocket read credentials alike. The key is
//! hashed at once; nothing behind this file sees it in clear.
use super::admin_key::AdminKey;
use super::key::{ApiKey, InvalidApiKey, KeyHash, KeyKind};
use crate::error::{ApiError, ErrorCode};

/// A key that was shown, known by its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    hash: KeyHash,
    kind: Option<KeyKind>,
}

/// Whose key it looks like. Only [`Claim::Admin`] is proven; a device's must be found in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Admin,
    /// Well-formed; whether a device holds it is still to be asked.
    Device(KeyHash),
    /// Neither the admin's nor in the form of a device's.
    Unknown,
}

/// Why the headers hold no usable credential. None of them repeats a header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("Authorization must be `Bearer KEY`")]
    NotBearer,
    #[error("the key in {0} is empty")]
    Empty(&'static str),
    #[error("the key in {0} has a character that is not visible ASCII")]
    Character(&'static str),
    #[error("the key in {header} {reason}")]
    Malformed { header: &'static str, reason: InvalidApiKey },
    #[error("{0} was sent more than once")]
    Repeated(&'static str),
    #[error("Authorization and X-API-Key hold different keys; send one of them")]
    Conflict,
    #[error("the API key is not known; it may have been revoked, or its device deleted")]
    Unknown,
}

impl From<CredentialError> for ApiError {
    fn from(error: CredentialError) -> Self {
        Self::new(ErrorCode::Unauthenticated, error.to_string())
    }
}

const AUTHORIZATION: &str = "Authorization";
const X_API_KEY: &str = "X-API-Key";

/// The credential in a request's headers; `None` when there is none.
///
/// Each argument is all values of that header, in order: a repeated header is an error, because two readers of one
/// request must not come to different answers.
///
/// # Errors
/// [`CredentialError`]; each becomes UNAUTHENTICATED.
pub fn from_headers<'a>(
    authorization: impl IntoIterator<Item = &'a [u8]>,
    x_api_key: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<Credential>, CredentialError> {
    let bearer = match single(AUTHORIZATION, authorization)? {
        Some(value) => Some(read(AUTHORIZATION, bearer(value)?)?),
        None => None,
    };
    let api_key = match single(X_API_KEY, x_api_key)? {
        Some(value) => Some(read(X_API_KEY, value)?),
        None => None,
    };
    match (bearer, api_key) {
        (Some(one), Some(other)) if one != other => Err(CredentialError::Conflict),
        (one, other) => Ok(one.or(other)),
    }
}

fn single<'a>(
    header: &'static str,
    values: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<&'a [u8]>, CredentialError> {
    let mut values = values.into_iter();
    let first = values.next();
    match values.next() {
        Some(_) => Err(CredentialError::Repeated(header)),
        None => Ok(first),
    }
}

/// The token of RFC 6750's `Bearer` scheme; a scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Result<&[u8], CredentialError> {
    let value = value.trim_ascii();
    match value.split_at_checked(6) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer") => match token.first() {
            Some(b' ') | None => Ok(token),
            Some(_) => Err(CredentialError::NotBearer),
        },
        _ => Err(CredentialError::NotBearer),
    }
}

fn read(header: &'static str, value: &[u8]) -> Result<Credential, CredentialError> {
    let value = value.trim_ascii();
    if value.is_empty() {
        return Err(CredentialError::Empty(header));
    }
    let text = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or(CredentialError::Character(header))?;
    let kind = match ApiKey::check(text) {
        Ok(kind) => Some(kind),
        // An operator may have chosen an admin key of any form.
        Err(InvalidApiKey::Prefix) => None,
        Err(reason) => return Err(CredentialError::Malformed { header, reason }),
    };
    Ok(Credential { hash: KeyHash::of(text), kind })
}

impl Credential {
    /// Compares with the admin's key in constant time; what is left can only be a device's.
    pub fn claim(&self, admin: &AdminKey) -> Claim {
        match self.kind {
            Some(KeyKind::Device) => Claim::Device(self.hash),
            Some(KeyKind::Admin) | None if admin.matches(&self.hash) => Claim::Admin,
            Some(KeyKind::Admin) | None => Claim::Unknown,
        }
    }

    pub const fn hash(&self) -> &KeyHash {
        &self.hash
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::load_or_create_admin_key;

    fn read_both(authorization: &[&str], x_api_key: &[&str]) -> Result<Option<Credential>, CredentialError> {
        from_headers(authorization.iter().map(|v| v.as_bytes()), x_api_key.iter().map(|v| v.as_bytes()))
    }

    fn key(kind: KeyKind) -> ApiKey {
        ApiKey::generate(kind).unwrap()
    }

    #[test]
    fn both_headers_carry_the_same_credential() {
        let device = key(KeyKind::Device);
        let text = device.expose();
        let bearer = read_both(&[&format!("Bearer {text}")], &[]).unwrap().unwrap();
        let api_key = read_both(&[], &[text]).unwrap().unwrap();
        assert_eq!(bearer, api_key);
        assert_eq!(bearer.hash(), &device.hash());
        assert_eq!(read_both(&[&format!("bearer  {text} ")], &[text]), Ok(Some(bearer)), "both, alike");
        assert_eq!(read_both(&[], &[]), Ok(None));
    }

    #[test]
    fn different_keys_in_the_two_headers_are_refused() {
        let (one, other) = (key(KeyKind::Device), key(KeyKind::Device));
        let bearer = format!("Bearer {}", one.expose());
        assert_eq!(read_both(&[&bearer], &[other.expose()]), Err(CredentialError::Conflict));
        assert_eq!(read_both(&[&bearer, &bearer], &[]), Err(CredentialError::Repeated("Authorization")));
        assert_eq!(read_both(&[], &["a", "b"]), Err(CredentialError::Repeated("X-API-Key")));
    }

    #[test]
    fn what_is_wrong_with_a_header_is_said() {
        for value in ["Basic dXNlcjpwYXNz", "Bearerfdk_x", "fdk_x", "", "Bear"] {
            assert_eq!(read_both(&[value], &[]), Err(CredentialError::NotBearer), "{value:?}");
        }
        assert_eq!(read_both(&["Bearer"], &[]), Err(CredentialError::Empty("Authorization")));
        assert_eq!(read_both(&["Bearer  "], &[]), Err(CredentialError::Empty("Authorization")));
        assert_eq!(read_both(&[], &[" "]), Err(CredentialError::Empty("X-API-Key")));
        assert_eq!(read_both(&[], &["a b"]), Err(CredentialError::Character("X-API-Key")));
        assert_eq!(from_headers([], [&[0xff_u8][..]]), Err(CredentialError::Character("X-API-Key")));
        let device = key(KeyKind::Device);
        let cut = &device.expose()[..50];
        let reason = InvalidApiKey::Length(50);
        assert_eq!(read_both(&[], &[cut]), Err(CredentialError::Malformed { header: "X-API-Key", reason }));
        let error = ApiError::from(read_both(&[], &[cut]).unwrap_err());
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        assert!(!error.message.contains(cut));
    }

    #[test]
    fn a_claim_is_the_admins_only_with_the_admins_key() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = "correct-horse-battery";
        let admin = load_or_create_admin_key(dir.path(), Some(chosen)).unwrap();
        let claim = |text: &str| read_both(&[], &[text]).unwrap().unwrap().claim(&admin);
        assert_eq!(claim(chosen), Claim::Admin);
        assert_eq!(claim("correct-horse-batterz"), Claim::Unknown);
        assert_eq!(claim(key(KeyKind::Admin).expose()), Claim::Unknown);
        let device = key(KeyKind::Device);
        assert_eq!(claim(device.expose()), Claim::Device(device.hash()));
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(
            authorization in proptest::collection::vec(any::<Vec<u8>>(), 0..3),
            x_api_key in proptest::collection::vec(any::<Vec<u8>>(), 0..3),
        ) {
            let _ = from_headers(authorization.iter().map(Vec::as_slice), x_api_key.iter().map(Vec::as_slice));
        }
    }
}
