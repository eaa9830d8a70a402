//! Paging by key: a page token is the last id of the page before, so that devices which come and go between two
//! pages neither shift nor repeat the others.
use crate::error::ApiError;
use crate::ids::DeviceId;

/// Items of a page when the caller names no number, and the most it gets (the reference's maximum).
pub const DEFAULT_PAGE_SIZE: usize = 20;
pub const MAX_PAGE_SIZE: usize = 100;

/// Tokens start with the version of their form, so that one from another version is refused, not misread.
const TOKEN_PREFIX: &str = "v1.";

/// Which page was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    pub size: usize,
    after: Option<String>,
}

impl Page {
    /// `size` 0 means the default; above the maximum it is lowered to it. A negative size or a token that this
    /// server did not make is INVALID_ARGUMENT.
    pub fn of(size: i32, token: &str) -> Result<Self, ApiError> {
        let size = match usize::try_from(size) {
            Ok(0) => DEFAULT_PAGE_SIZE,
            Ok(size) => size.min(MAX_PAGE_SIZE),
            Err(_) => {
                let message = format!("page_size is {size}; give 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}");
                return Err(ApiError::invalid_argument(message));
            }
        };
        let after = match token {
            "" => None,
            token => Some(decode(token).ok_or_else(|| {
                ApiError::invalid_argument("page_token is not one that this server made; leave it out to start anew")
            })?),
        };
        Ok(Self { size, after })
    }

    /// The key that the page begins after; `None` for the first page.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }
}

/// Cuts `items`, read with one to spare, to `size`; gives the token of the next page, empty on the last.
pub fn cut<T>(items: &mut Vec<T>, size: usize, key: impl Fn(&T) -> &str) -> String {
    if items.len() <= size {
        return String::new();
    }
    items.truncate(size);
    items.last().map(|last| encode(key(last))).unwrap_or_default()
}

fn encode(key: &str) -> String {
    let mut token = String::from(TOKEN_PREFIX);
    for byte in key.bytes() {
        token.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        token.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    token
}

fn decode(token: &str) -> Option<String> {
    let digits = token.strip_prefix(TOKEN_PREFIX)?.as_bytes();
    if digits.len() % 2 != 0 || digits.len() > 2 * crate::ids::MAX_DEVICE_ID_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes: Option<Vec<u8>> =
        digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect();
    String::from_utf8(bytes?).ok().filter(|id| DeviceId::check(id).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_the_page_after_its_last_item() {
        let mut items = vec!["a", "b", "c"];
        let token = cut(&mut items, 2, |item| item);
        assert_eq!(items, ["a", "b"]);
        assert_eq!(Page::of(2, &token).expect("our own token").after(), Some("b"));
    }

    #[test]
    fn the_last_page_has_no_token() {
        assert_eq!(cut(&mut vec!["a", "b"], 2, |item| item), "");
        assert_eq!(cut(&mut Vec::<&str>::new(), 2, |item| item), "");
    }

    #[test]
    fn sizes_are_defaulted_clamped_or_refused() {
        assert_eq!(Page::of(0, "").expect("default").size, DEFAULT_PAGE_SIZE);
        assert_eq!(Page::of(1_000_000, "").expect("clamped").size, MAX_PAGE_SIZE);
        assert!(Page::of(-1, "").expect_err("negative").message.contains("page_size is -1"));
    }

    #[test]
    fn a_forged_token_is_refused() {
        for token in ["x", "v1.", "v1.6", "v1.zz", "v2.61", "v1.2e2e2f", &format!("v1.{}", "61".repeat(100_000))] {
            assert!(Page::of(1, token).is_err(), "{}", &token[..token.len().min(20)]);
        }
    }
}
