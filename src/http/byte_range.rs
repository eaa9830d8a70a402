//! Ranges and preconditions of a download, as RFC 9110 says. Pure: texts of headers in, a decision out.
//!
//! A representation never changes: its entity tag is the SHA-256 of its bytes.
use std::ops::Range;

/// What of the bytes is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    Part(Range<u64>),
    /// The range begins behind the end.
    Unsatisfiable,
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Go,
    /// 304: the client has these bytes.
    NotModified,
    /// 412: the client wants other bytes.
    Failed,
}

/// What `Range` asks of `size` bytes. More than one range, and what is no range of bytes, is answered with the whole,
/// as section 14.2 allows.
pub fn wanted(range: &str, size: u64) -> Wanted {
    let Some((unit, set)) = range.split_once('=') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::Whole };
    match (number(first), number(last)) {
        (Some(Number::None), Some(Number::Of(0))) => Wanted::Unsatisfiable,
        (Some(Number::None), Some(Number::Of(suffix))) if size > 0 => Wanted::Part(size.saturating_sub(suffix)..size),
        (Some(Number::Of(first)), Some(Number::Of(last))) if last < first => Wanted::Whole,
        (Some(Number::Of(first)), Some(last)) if first < size => {
            let end = match last {
                Number::Of(last) => last.saturating_add(1).min(size),
                Number::None => size,
            };
            Wanted::Part(first..end)
        }
        (Some(Number::Of(_)), Some(_)) | (Some(Number::None), Some(Number::Of(_))) => Wanted::Unsatisfiable,
        _ => Wanted::Whole,
    }
}

#[derive(Clone, Copy)]
enum Number {
    None,
    Of(u64),
}

/// Digits alone; a number that no file reaches counts as the largest.
fn number(text: &str) -> Option<Number> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Number::None);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Number::Of(text.parse().unwrap_or(u64::MAX)))
}

/// Decides `If-Match` and `If-None-Match` for the entity tag `etag`, quotes included.
pub fn condition(if_match: Option<&str>, if_none_match: Option<&str>, etag: &str) -> Condition {
    if if_match.is_some_and(|tags| !names(tags, etag, Weak::Never)) {
        return Condition::Failed;
    }
    if if_none_match.is_some_and(|tags| names(tags, etag, Weak::Allowed)) {
        return Condition::NotModified;
    }
    Condition::Go
}

/// Whether `Range` counts: not if the client has a part of other bytes. A date never fits, since none is told.
pub fn range_counts(if_range: Option<&str>, etag: &str) -> bool {
    if_range.is_none_or(|validator| validator.trim() == etag)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weak {
    Allowed,
    Never,
}

fn names(tags: &str, etag: &str, weak: Weak) -> bool {
    // Tags of ours are hexadecimal digits, so no comma is inside one that could fit.
    tags.split(',').map(str::trim).any(|tag| match tag.strip_prefix("W/") {
        Some(tag) => weak == Weak::Allowed && tag == etag,
        None => tag == "*" || tag == etag,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_bytes_is_served_as_the_rfc_says() {
        let part =
            |range: &str, expected: Range<u64>| assert_eq!(wanted(range, 1000), Wanted::Part(expected), "{range}");
        part("bytes=0-0", 0..1);
        part("bytes=0-499", 0..500);
        part("bytes=500-", 500..1000);
        part("bytes=999-5000", 999..1000);
        part("bytes=-1", 999..1000);
        part("bytes=-5000", 0..1000);
        part("Bytes= 1-2", 1..3);
        part("bytes=0-99999999999999999999999", 0..1000);
    }

    #[test]
    fn a_range_behind_the_end_is_unsatisfiable() {
        for range in ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(wanted(range, 1000), Wanted::Unsatisfiable, "{range}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=-1", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn what_is_no_single_range_gets_the_whole() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "items=0-1",
            "bytes=0-1,5-6",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=1--2",
        ] {
            assert_eq!(wanted(range, 1000), Wanted::Whole, "{range}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_part_is_never_empty_and_never_behind_the_end(range in "bytes=[0-9]{0,21}-[0-9]{0,21}|.*", size: u64) {
            if let Wanted::Part(part) = wanted(&range, size) {
                proptest::prop_assert!(part.start < part.end && part.end <= size);
            }
        }
    }

    #[test]
    fn conditions_compare_entity_tags() {
        let tag = "\"9f86\"";
        assert_eq!(condition(None, None, tag), Condition::Go);
        for tags in [tag, "*", "\"a\", \"9f86\"", "W/\"9f86\""] {
            assert_eq!(condition(None, Some(tags), tag), Condition::NotModified, "{tags}");
        }
        assert_eq!(condition(None, Some("\"a\""), tag), Condition::Go);
        assert_eq!(condition(Some("\"a\""), None, tag), Condition::Failed);
        assert_eq!(condition(Some("W/\"9f86\""), None, tag), Condition::Failed, "a strong comparison");
        assert_eq!(condition(Some("\"9f86\""), Some("\"a\""), tag), Condition::Go);
    }

    #[test]
    fn a_range_of_other_bytes_is_not_served() {
        assert!(range_counts(None, "\"a\""));
        assert!(range_counts(Some("\"a\""), "\"a\""));
        for other in ["\"b\"", "W/\"a\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert!(!range_counts(Some(other), "\"a\""), "{other}");
        }
    }
}
