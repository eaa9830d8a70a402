//! The files of an update: which are accepted, and which one a device gets.
use fleetd_proto::v1::Artifact;
use url::Url;

/// Artifacts of one update: one for each kind of device, and few fleets have more than a dozen kinds.
pub const MAX_ARTIFACTS: usize = 64;

/// Longest URL that is accepted, in bytes: what every proxy and server on the way takes.
pub const MAX_URL_BYTES: usize = 2_048;

/// Longest detached signature in bytes; a certificate chain does not belong into every offer.
pub const MAX_SIGNATURE_BYTES: usize = 4_096;

/// Longest platform and architecture in bytes, as for `Device.type`.
const MAX_KIND_BYTES: usize = 64;

const SHA256_DIGITS: usize = 64;

/// An artifact that is not accepted; INVALID_ARGUMENT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct InvalidArtifact {
    /// The field's path, such as `artifacts[0].url`.
    pub field: String,
    /// What was found and what is accepted.
    pub message: String,
}

impl From<InvalidArtifact> for crate::error::ApiError {
    fn from(invalid: InvalidArtifact) -> Self {
        Self::invalid_argument(invalid.to_string())
    }
}

/// What a checksum promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum<'a> {
    /// The 64 hexadecimal digits.
    Whole(&'a str),
    /// Shortened with an ellipsis, as the API reference prints one: no device can verify it.
    Abbreviated(&'a str),
}

impl<'a> Checksum<'a> {
    /// `None` for what is no checksum of an accepted form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let is_hexadecimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match digits.strip_suffix("...") {
            None => (digits.len() == SHA256_DIGITS && is_hexadecimal(digits)).then_some(Self::Whole(digits)),
            Some(digits) => {
                let is_short = (1..SHA256_DIGITS).contains(&digits.len());
                (is_short && is_hexadecimal(digits)).then_some(Self::Abbreviated(digits))
            }
        }
    }
}

/// Whether devices have nothing to check the artifact's bytes against.
pub fn is_unverifiable(artifact: &Artifact) -> bool {
    matches!(Checksum::parse(&artifact.checksum), Some(Checksum::Abbreviated(_)))
}

/// The number of the artifact that a device of this type and architecture gets. One that names the type goes before
/// one for every type; of those, one that names the architecture before one for all.
pub fn choose(artifacts: &[Artifact], device_type: &str, arch: &str) -> Option<usize> {
    let fits = |wanted: &str, has: &str| wanted.is_empty() || wanted == has;
    artifacts
        .iter()
        .enumerate()
        .filter(|(_, artifact)| fits(&artifact.platform, device_type) && fits(&artifact.arch, arch))
        // The first of equals; there are none in artifacts that were checked.
        .min_by_key(|(at, artifact)| (artifact.platform.is_empty(), artifact.arch.is_empty(), *at))
        .map(|(at, _)| at)
}

/// Checks the artifacts of a new update. `allow_http` also takes URLs that are not encrypted.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_artifacts(artifacts: &[Artifact], allow_http: bool) -> Result<(), InvalidArtifact> {
    if artifacts.is_empty() || artifacts.len() > MAX_ARTIFACTS {
        return Err(InvalidArtifact {
            field: "artifacts".into(),
            message: format!("has {} entries; give 1 to {MAX_ARTIFACTS}", artifacts.len()),
        });
    }
    for (at, artifact) in artifacts.iter().enumerate() {
        check(artifact, allow_http).map_err(|(field, message)| InvalidArtifact {
            field: format!("artifacts[{at}]{}{field}", if field.is_empty() { "" } else { "." }),
            message,
        })?;
        let is_same = |other: &Artifact| other.platform == artifact.platform && other.arch == artifact.arch;
        if let Some(first) = artifacts[..at].iter().position(is_same) {
            return Err(InvalidArtifact {
                field: format!("artifacts[{at}]"),
                message: format!(
                    "is for platform {:?} and arch {:?}, as artifacts[{first}] is; a device can get only one",
                    artifact.platform, artifact.arch
                ),
            });
        }
    }
    Ok(())
}

fn check(artifact: &Artifact, allow_http: bool) -> Result<(), (&'static str, String)> {
    for (field, text) in [("platform", &artifact.platform), ("arch", &artifact.arch)] {
        if text.len() > MAX_KIND_BYTES {
            return Err((field, format!("has {} bytes; at most {MAX_KIND_BYTES} are allowed", text.len())));
        }
    }
    match (artifact.url.is_empty(), artifact.binary_id.is_empty()) {
        (true, true) => return Err(("", "says not where the file is; give a url or a binary_id".into())),
        (false, false) => return Err(("", "has both a url and a binary_id; give one".into())),
        (false, true) => check_url(&artifact.url, allow_http).map_err(|message| ("url", message))?,
        (true, false) => {}
    }
    // The server knows the checksum of what was uploaded to it.
    let is_checksum_due = artifact.binary_id.is_empty() || !artifact.checksum.is_empty();
    if is_checksum_due && Checksum::parse(&artifact.checksum).is_none() {
        let found = match artifact.checksum.as_str() {
            "" => "is missing".to_owned(),
            text => format!("is {}", shown(text)),
        };
        return Err(("checksum", format!("{found}; give sha256: and {SHA256_DIGITS} hexadecimal digits")));
    }
    if artifact.size_bytes < 0 {
        return Err(("size_bytes", format!("is {}; a file has 0 bytes or more", artifact.size_bytes)));
    }
    let signature = artifact.signature.len();
    if signature > MAX_SIGNATURE_BYTES {
        return Err(("signature", format!("has {signature} bytes; at most {MAX_SIGNATURE_BYTES} are allowed")));
    }
    Ok(())
}

fn check_url(text: &str, allow_http: bool) -> Result<(), String> {
    if text.len() > MAX_URL_BYTES {
        return Err(format!("has {} bytes; at most {MAX_URL_BYTES} are allowed", text.len()));
    }
    // A browser's parser mends these, a device's may read them as another host.
    if text.chars().any(|character| character.is_control() || character.is_whitespace() || character == '\\') {
        return Err(format!("is {}; spaces, control characters and backslashes are not allowed in it", shown(text)));
    }
    let url = Url::parse(text).map_err(|error| format!("is {}, which is no URL ({error})", shown(text)))?;
    let allowed: &[&str] = if allow_http { &["https", "http"] } else { &["https"] };
    if !allowed.contains(&url.scheme()) {
        let hint = if url.scheme() == "http" { " (http only where the server allows it)" } else { "" };
        return Err(format!("has the scheme {:?}; allowed: {}{hint}", url.scheme(), allowed.join(", ")));
    }
    // `https:host` too is mended by a browser's parser.
    let is_whole = text.get(url.scheme().len()..).is_some_and(|rest| rest.starts_with("://"));
    match url.host_str() {
        Some(host) if is_whole && !host.is_empty() => Ok(()),
        _ => Err(format!("is {}; after the scheme come // and a host", shown(text))),
    }
}

/// A caller's text as an error shows it: quoted, and no longer than a line.
fn shown(text: &str) -> String {
    const MAX_CHARACTERS: usize = 80;
    match text.char_indices().nth(MAX_CHARACTERS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(platform: &str, arch: &str) -> Artifact {
        Artifact {
            platform: platform.into(),
            arch: arch.into(),
            url: "https://updates.fleetd.io/firmware-2.0.0-rpi.tar.gz".into(),
            checksum: format!("sha256:{}", "0aF".repeat(22).get(..64).expect("64 digits")),
            size_bytes: 104_857_600,
            ..Artifact::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Artifact)) -> String {
        let mut changed = artifact("raspberry-pi", "");
        change(&mut changed);
        check_artifacts(&[changed], false).expect_err("it is not accepted").to_string()
    }

    #[test]
    fn the_references_example_is_accepted_and_known_to_be_unverifiable() {
        let printed = Artifact { checksum: "sha256:abc123...".into(), ..artifact("raspberry-pi", "") };
        assert_eq!(check_artifacts(std::slice::from_ref(&printed), false), Ok(()));
        assert!(is_unverifiable(&printed));
        assert!(!is_unverifiable(&artifact("", "")));
    }

    #[test]
    fn the_most_specific_artifact_is_chosen_and_none_where_none_fits() {
        let artifacts = [artifact("", ""), artifact("", "arm64"), artifact("pi", ""), artifact("pi", "arm64")];
        assert_eq!(choose(&artifacts, "pi", "arm64"), Some(3));
        assert_eq!(choose(&artifacts, "pi", "x86_64"), Some(2));
        assert_eq!(choose(&artifacts, "esp32", "arm64"), Some(1));
        assert_eq!(choose(&artifacts, "esp32", ""), Some(0));
        assert_eq!(choose(&artifacts[2..], "esp32", "arm64"), None);
        assert_eq!(choose(&artifacts[2..], "Pi", "arm64"), None, "types are compared exactly");
        assert_eq!(choose(&[artifact("", "arm64")], "pi", ""), None, "an unknown architecture fits no named one");
    }

    #[test]
    fn only_encrypted_urls_of_the_web_are_accepted() {
        for (url, says) in [
            ("file:///etc/passwd", "scheme \"file\""),
            ("ftp://updates.fleetd.io/a", "scheme \"ftp\""),
            ("javascript:alert(1)", "scheme \"javascript\""),
            ("data:text/plain,hi", "scheme \"data\""),
            ("http://updates.fleetd.io/a", "where the server allows it"),
            ("java\nscript:alert(1)", "control characters"),
            (" https://updates.fleetd.io/a", "spaces"),
            ("https:\\\\updates.fleetd.io\\a", "backslashes"),
            ("https:updates.fleetd.io", "and a host"),
            ("https://", "no URL"),
            ("updates.fleetd.io/a", "no URL"),
            ("https://updates.fleetd.io:99999/a", "no URL"),
        ] {
            let refused = refusal(|artifact| artifact.url = url.into());
            assert!(refused.starts_with("artifacts[0].url ") && refused.contains(says), "{url}: {refused}");
        }
        let long = format!("https://updates.fleetd.io/{}", "x".repeat(MAX_URL_BYTES));
        assert!(refusal(|artifact| artifact.url = long).contains("at most 2048"));
        for url in ["HTTPS://updates.fleetd.io/a?b=c", "https://[::1]:8443/a", "https://bücher.example/a"] {
            assert_eq!(check_artifacts(&[Artifact { url: url.into(), ..artifact("", "") }], false), Ok(()), "{url}");
        }
        let plain = Artifact { url: "http://10.0.0.1/a".into(), ..artifact("", "") };
        assert_eq!(check_artifacts(&[plain], true), Ok(()));
        assert!(check_artifacts(&[Artifact { url: "file:///a".into(), ..artifact("", "") }], true).is_err());
    }

    #[test]
    fn what_an_artifact_cannot_be_is_refused_by_field() {
        for (checksum, says) in [
            (String::new(), "is missing"),
            (format!("sha256:{}", "a".repeat(63)), "64 hexadecimal"),
            (format!("sha256:{}", "g".repeat(64)), "64 hexadecimal"),
            (format!("sha256:{}...", "a".repeat(64)), "64 hexadecimal"),
            ("sha256:...".into(), "64 hexadecimal"),
            ("md5:abc123...".into(), "64 hexadecimal"),
            ("a".repeat(64), "64 hexadecimal"),
        ] {
            let refused = refusal(|artifact| artifact.checksum.clone_from(&checksum));
            assert!(refused.starts_with("artifacts[0].checksum ") && refused.contains(says), "{refused}");
        }
        assert!(refusal(|artifact| artifact.size_bytes = -1).contains("artifacts[0].size_bytes is -1"));
        assert!(refusal(|artifact| artifact.signature = vec![0; 4_097].into()).contains("signature has 4097 bytes"));
        assert!(refusal(|artifact| artifact.url.clear()).starts_with("artifacts[0] says not where"));
        assert!(refusal(|artifact| artifact.binary_id = "binary-001".into()).contains("both a url and a binary_id"));
        assert!(refusal(|artifact| artifact.platform = "x".repeat(65)).contains("platform has 65 bytes"));
    }

    #[test]
    fn an_uploaded_binary_needs_neither_checksum_nor_size() {
        let uploaded = Artifact { binary_id: "binary-001".into(), ..Artifact::default() };
        assert_eq!(check_artifacts(std::slice::from_ref(&uploaded), false), Ok(()));
        let wrong = Artifact { checksum: "sha1:00".into(), ..uploaded };
        assert!(check_artifacts(&[wrong], false).is_err());
    }

    #[test]
    fn no_two_artifacts_are_for_the_same_devices_and_their_number_is_bounded() {
        let twice = [artifact("pi", "arm64"), artifact("pi", ""), artifact("pi", "arm64")];
        let refused = check_artifacts(&twice, false).expect_err("two for one kind").to_string();
        assert!(refused.starts_with("artifacts[2] is for") && refused.contains("artifacts[0]"), "{refused}");
        let many: Vec<_> = (0..65).map(|n| artifact(&format!("p{n}"), "")).collect();
        assert!(check_artifacts(&many, false).is_err());
        assert!(check_artifacts(&[], false).is_err());
        assert_eq!(check_artifacts(&many[..64], false), Ok(()));
    }
}
