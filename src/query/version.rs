//! The order of software versions.
use std::cmp::Ordering;

/// Orders versions as Semantic Versioning 2.0.0, section 11, and takes what is looser than it: a leading `v`, any
/// number of dotted parts (`1.0` is `1.0.0`, `2024.11.3`), parts that are no numbers (after those that are).
/// Build metadata (`+...`) does not count.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a_core, a_pre) = split(a);
    let (b_core, b_pre) = split(b);
    compare_cores(a_core, b_core).then_with(|| match (a_pre, b_pre) {
        ("", "") => Ordering::Equal,
        // A pre-release comes before its release.
        ("", _) => Ordering::Greater,
        (_, "") => Ordering::Less,
        (a, b) => compare_parts(a, b),
    })
}

/// Whether `text` begins as a version does.
pub(super) fn is_version(text: &str) -> bool {
    unprefixed(text).starts_with(|first: char| first.is_ascii_digit())
}

fn unprefixed(text: &str) -> &str {
    text.strip_prefix(['v', 'V']).unwrap_or(text)
}

fn split(version: &str) -> (&str, &str) {
    let version = unprefixed(version);
    let version = version.split_once('+').map_or(version, |(version, _)| version);
    version.split_once('-').unwrap_or((version, ""))
}

/// As [`compare_parts`], with missing parts counted as 0.
fn compare_cores(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) => match compare_part(a.unwrap_or("0"), b.unwrap_or("0")) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

fn compare_parts(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => match compare_part(a, b) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

/// Numbers by value, however long; before texts, which compare by their bytes.
fn compare_part(a: &str, b: &str) -> Ordering {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match (number(a), number(b)) {
        (true, true) => {
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_as_semantic_versioning_says() {
        // The example of section 11, then looser ones, in order.
        let ordered = [
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "v1.0.0",
            "1.0.1",
            "1.2",
            "1.10",
            "2.0.0",
            "2024.11.3",
            "99999999999999999999999.1",
        ];
        for (at, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare_versions(a, b), at.cmp(&other), "{a} and {b}");
            }
        }
    }

    #[test]
    fn what_does_not_count_is_equal() {
        for (a, b) in [("1", "1.0.0"), ("v2.1", "2.1.0+build.7"), ("01.2", "1.2"), ("", "")] {
            assert_eq!(compare_versions(a, b), Ordering::Equal, "{a} and {b}");
        }
    }
}
