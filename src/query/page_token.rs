//! The place where the next page of a list begins: the sort values and the id of the last item of the page before
//! (a keyset), so that items which come and go between two pages neither shift nor repeat the others.
//!
//! A token is opaque: base64url of a message and its HMAC-SHA256 (RFC 2104) under a secret of the installation, so
//! nobody can forge a place or learn to depend on its form. It is bound to its query by a digest, and carries the time
//! of the first page, so that `last_seen:<-1h` means the same moment on all pages.
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use fleetd_proto::v1::device_status::State;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::order::SortValue;
use crate::clock::UnixMillis;

/// Items of a page when the caller names no number, and the most it gets (the reference's maximum).
pub const DEFAULT_PAGE_SIZE: usize = 20;
pub const MAX_PAGE_SIZE: usize = 100;

/// Longest token that is looked at: [`super::MAX_SORT_KEYS`] values of 1,024 bytes, an id, and base64's third.
pub const MAX_TOKEN_BYTES: usize = 12 << 10;

/// Bytes of the HMAC that are kept: 128 bits cannot be guessed.
const TAG_BYTES: usize = 16;

/// Form of the message; a token of another form is refused, not misread.
const VERSION: u8 = 1;

/// What tokens are signed with.
#[derive(Clone)]
pub struct TokenSecret([u8; 32]);

/// What a list was asked for, besides the page: a token is good for the same again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 16]);

/// Where the next page begins.
#[derive(Clone, Debug, PartialEq)]
pub struct PageToken {
    /// The time of the first page.
    pub now: UnixMillis,
    /// Sort values of the last item, one for each key of the order.
    pub values: Vec<SortValue>,
    /// Its id.
    pub id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("is not one that this server made; leave it out to start anew")]
    Forged,
    #[error("belongs to a list with another filter or order; repeat both with it, or leave it out to start anew")]
    OtherQuery,
}

impl TokenSecret {
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    fn tag(&self, message: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(message);
        mac
    }
}

impl Digest {
    /// Of the parts of a query, such as the list's name, its filter and its order in their canonical texts.
    pub fn of(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            // The length keeps ["ab", "c"] apart from ["a", "bc"].
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize()[..16]);
        Self(digest)
    }
}

/// The message of a token.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(sint64, tag = "2")]
    now_millis: i64,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "4")]
    values: Vec<BodyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BodyValue {
    #[prost(oneof = "OneValue", tags = "1, 2, 3, 4, 5")]
    value: Option<OneValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OneValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(string, tag = "2")]
    Version(String),
    #[prost(double, tag = "3")]
    Number(f64),
    #[prost(sint64, tag = "4")]
    TimeMillis(i64),
    #[prost(int32, tag = "5")]
    State(i32),
}

impl PageToken {
    pub fn encode(&self, secret: &TokenSecret, query: Digest) -> String {
        let values = self.values.iter().map(|value| BodyValue { value: to_body(value) }).collect();
        let body = Body { digest: query.0.to_vec(), now_millis: self.now.as_millis(), id: self.id.clone(), values };
        let mut message = vec![VERSION];
        message.append(&mut body.encode_to_vec());
        let tag = secret.tag(&message).finalize().into_bytes();
        message.extend_from_slice(&tag[..TAG_BYTES]);
        URL_SAFE_NO_PAD.encode(message)
    }

    /// # Errors
    /// [`TokenError::Forged`] for what [`Self::encode`] did not make with this secret; [`TokenError::OtherQuery`] for
    /// what it made for another query.
    pub fn decode(token: &str, secret: &TokenSecret, query: Digest) -> Result<Self, TokenError> {
        let body = Self::verified(token, secret).ok_or(TokenError::Forged)?;
        if body.digest != query.0 {
            return Err(TokenError::OtherQuery);
        }
        let values = body.values.into_iter().map(|value| from_body(value.value)).collect();
        Ok(Self { now: UnixMillis::from_millis_clamped(body.now_millis), values, id: body.id })
    }

    fn verified(token: &str, secret: &TokenSecret) -> Option<Body> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (message, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG_BYTES)?)?;
        // In constant time.
        secret.tag(message).verify_truncated_left(tag).ok()?;
        let (version, body) = message.split_first()?;
        (*version == VERSION).then(|| Body::decode(body).ok())?
    }
}

fn to_body(value: &SortValue) -> Option<OneValue> {
    Some(match value {
        SortValue::Missing => return None,
        SortValue::Text(text) => OneValue::Text(text.clone()),
        SortValue::Version(text) => OneValue::Version(text.clone()),
        SortValue::Number(number) => OneValue::Number(*number),
        SortValue::Time(at) => OneValue::TimeMillis(at.as_millis()),
        SortValue::State(state) => OneValue::State(*state as i32),
    })
}

fn from_body(value: Option<OneValue>) -> SortValue {
    match value {
        None => SortValue::Missing,
        Some(OneValue::Text(text)) => SortValue::Text(text),
        Some(OneValue::Version(text)) => SortValue::Version(text),
        Some(OneValue::Number(number)) => SortValue::Number(number),
        Some(OneValue::TimeMillis(at)) => SortValue::Time(UnixMillis::from_millis_clamped(at)),
        Some(OneValue::State(state)) => SortValue::State(State::try_from(state).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> PageToken {
        PageToken {
            now: UnixMillis::from_millis_clamped(1_704_067_200_123),
            values: vec![
                SortValue::Missing,
                SortValue::Text("größe".into()),
                SortValue::Version("1.2.3-rc.1".into()),
                SortValue::Number(0.1 + 0.2),
                SortValue::Time(UnixMillis::from_millis_clamped(-5)),
                SortValue::State(State::Late),
            ],
            id: "rpi-001".into(),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was() {
        let (secret, query) = (TokenSecret::new([7; 32]), Digest::of(&["devices", "status:online", ""]));
        let text = token().encode(&secret, query);
        assert_eq!(PageToken::decode(&text, &secret, query), Ok(token()));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
    }

    #[test]
    fn a_token_of_another_query_or_server_is_refused() {
        let (secret, query) = (TokenSecret::new([7; 32]), Digest::of(&["devices", "a", "b"]));
        let text = token().encode(&secret, query);
        let other = Digest::of(&["devices", "ab", ""]);
        assert_eq!(PageToken::decode(&text, &secret, other), Err(TokenError::OtherQuery));
        assert_eq!(PageToken::decode(&text, &TokenSecret::new([8; 32]), query), Err(TokenError::Forged));
    }

    #[test]
    fn no_changed_character_goes_unseen() {
        let (secret, query) = (TokenSecret::new([7; 32]), Digest::of(&[]));
        let text = token().encode(&secret, query);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(PageToken::decode(&changed, &secret, query), Err(TokenError::Forged), "at {at}");
        }
        for cut in 0..text.len() {
            assert_eq!(PageToken::decode(&text[..cut], &secret, query), Err(TokenError::Forged), "cut at {cut}");
        }
        let huge = "A".repeat(10 << 20);
        assert_eq!(PageToken::decode(&huge, &secret, query), Err(TokenError::Forged));
    }
}
