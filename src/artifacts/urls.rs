//! URLs by which a device downloads a file with nothing but HTTP: signed, and good until a point in time.
//!
//! `BASE/artifacts/bin-001?expires=1735689600&signature=…`. The signature is HMAC-SHA256 over the id and the time, with
//! a secret of this installation, so that no one can make a URL, turn it to another file, or prolong it. Files of exports
//! have URLs of the same kind below `/exports/`.
use std::sync::Arc;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::store::{SettingStore, StoreError};

/// The setting that keeps the secret, so that URLs outlive a restart.
const SECRET_SETTING: &str = "download_url_secret";

/// What the path of every download begins with.
pub const PATH_PREFIX: &str = "/artifacts/";

/// What the path of every download of an export begins with.
pub const EXPORT_PATH_PREFIX: &str = "/exports/";

/// Keeps a signature from being taken for one of another purpose under the same secret.
const PURPOSE: &[u8] = b"fleetd artifact url 1\n";
const EXPORT_PURPOSE: &[u8] = b"fleetd export url 1\n";

/// Makes and checks URLs. Cheap to clone.
#[derive(Clone)]
pub struct DownloadUrls {
    /// Without a slash at its end.
    base: Arc<str>,
    secret: [u8; 32],
}

/// Why there is no secret for URLs.
#[derive(Debug, thiserror::Error)]
pub enum UrlsError {
    #[error("the secret of download URLs cannot be kept")]
    Store(#[from] StoreError),
    #[error("no random bytes for the secret of download URLs")]
    Random(#[source] getrandom::Error),
}

/// Why a URL opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefusal {
    #[error("the download URL is not whole: it needs expires and signature, each once")]
    Incomplete,
    #[error("the signature of the download URL is not valid for this file and time")]
    Forged,
    #[error("the download URL expired {0} s ago; the device's next heartbeat brings a new one")]
    Expired(i64),
}

impl From<UrlRefusal> for ApiError {
    fn from(refusal: UrlRefusal) -> Self {
        Self::new(ErrorCode::PermissionDenied, refusal.to_string())
    }
}

impl DownloadUrls {
    /// `base` is where devices find this server: `https://fleet.example.com`.
    pub fn new(base: &str, secret: [u8; 32]) -> Self {
        Self { base: base.trim_end_matches('/').into(), secret }
    }

    /// With the installation's secret, which is made when there is none.
    pub async fn load_or_create(settings: &(impl SettingStore + ?Sized), base: &str) -> Result<Self, UrlsError> {
        if let Some(secret) = settings.setting(SECRET_SETTING).await?.and_then(|kept| kept.try_into().ok()) {
            return Ok(Self::new(base, secret));
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(UrlsError::Random)?;
        settings.set_setting(SECRET_SETTING, secret.to_vec()).await?;
        Ok(Self::new(base, secret))
    }

    /// A URL that opens the file until `expires_at`, to the second.
    pub fn sign(&self, binary_id: &str, expires_at: UnixMillis) -> String {
        self.sign_for(PURPOSE, PATH_PREFIX, binary_id, expires_at)
    }

    /// As [`Self::sign`], for the file of an export, by its name: `exp-001.csv`.
    pub fn sign_export(&self, file_name: &str, expires_at: UnixMillis) -> String {
        self.sign_for(EXPORT_PURPOSE, EXPORT_PATH_PREFIX, file_name, expires_at)
    }

    fn sign_for(&self, purpose: &[u8], path: &str, name: &str, expires_at: UnixMillis) -> String {
        let expires = expires_at.as_millis().div_euclid(1_000);
        let signature = URL_SAFE_NO_PAD.encode(self.mac(purpose, name, expires).finalize().into_bytes());
        format!("{}{path}{name}?expires={expires}&signature={signature}", self.base)
    }

    /// Checks the query of a URL for the file `binary_id`. The signature is compared in constant time, and before the
    /// time: what is said about a forged one tells nothing.
    pub fn verify(&self, binary_id: &str, query: &str, now: UnixMillis) -> Result<(), UrlRefusal> {
        self.verify_for(PURPOSE, binary_id, query, now)
    }

    /// As [`Self::verify`], for the file of an export.
    pub fn verify_export(&self, file_name: &str, query: &str, now: UnixMillis) -> Result<(), UrlRefusal> {
        self.verify_for(EXPORT_PURPOSE, file_name, query, now)
    }

    fn verify_for(&self, purpose: &[u8], name: &str, query: &str, now: UnixMillis) -> Result<(), UrlRefusal> {
        let (mut expires, mut signature) = (None, None);
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let slot = match key {
                "expires" => &mut expires,
                "signature" => &mut signature,
                _ => continue,
            };
            // Two readers of one URL must not come to different answers.
            if slot.replace(value).is_some() {
                return Err(UrlRefusal::Incomplete);
            }
        }
        let (Some(expires), Some(signature)) = (expires, signature) else { return Err(UrlRefusal::Incomplete) };
        let seconds: i64 = expires.parse().map_err(|_| UrlRefusal::Forged)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| UrlRefusal::Forged)?;
        self.mac(purpose, name, seconds).verify_slice(&signature).map_err(|_| UrlRefusal::Forged)?;
        match now.as_millis().div_euclid(1_000) - seconds {
            late if late > 0 => Err(UrlRefusal::Expired(late)),
            _ => Ok(()),
        }
    }

    fn mac(&self, purpose: &[u8], name: &str, expires: i64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(purpose);
        mac.update(name.as_bytes());
        mac.update(b"\n");
        mac.update(&expires.to_be_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::from_unix_seconds(1_735_689_600);
    const LATER: UnixMillis = UnixMillis::from_unix_seconds(1_735_689_660);

    fn urls() -> DownloadUrls {
        DownloadUrls::new("https://fleet.example.com/", [7; 32])
    }

    fn query(url: &str) -> &str {
        url.split_once('?').unwrap().1
    }

    #[test]
    fn a_url_opens_its_file_until_it_expires() {
        let url = urls().sign("bin-001", LATER);
        assert!(url.starts_with("https://fleet.example.com/artifacts/bin-001?expires=1735689660&signature="), "{url}");
        assert_eq!(urls().verify("bin-001", query(&url), NOW), Ok(()));
        assert_eq!(urls().verify("bin-001", query(&url), LATER), Ok(()));
        let too_late = UnixMillis::from_unix_seconds(1_735_689_665);
        assert_eq!(urls().verify("bin-001", query(&url), too_late), Err(UrlRefusal::Expired(5)));
    }

    #[test]
    fn a_url_cannot_be_forged_prolonged_or_turned_to_another_file() {
        let url = urls().sign("bin-001", NOW);
        let signed = query(&url);
        let forged = |binary: &str, query: &str| urls().verify(binary, query, NOW) == Err(UrlRefusal::Forged);
        assert!(forged("bin-002", signed));
        assert!(forged("bin-001", &signed.replace("1735689600", "1735689601")));
        assert!(forged("bin-001", &signed.replace("expires=1", "expires=x")));
        let mut bytes = signed.as_bytes().to_vec();
        let middle = bytes.len() - 10;
        bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        assert!(forged("bin-001", std::str::from_utf8(&bytes).unwrap()));
        assert!(forged("bin-001", &signed[..signed.len() - 4]));
        assert!(DownloadUrls::new("", [8; 32]).verify("bin-001", signed, NOW) == Err(UrlRefusal::Forged));
    }

    #[test]
    fn a_url_of_an_export_opens_no_artifact_and_the_other_way_around() {
        let url = urls().sign_export("exp-001.csv", LATER);
        assert!(url.starts_with("https://fleet.example.com/exports/exp-001.csv?expires=1735689660&"), "{url}");
        assert_eq!(urls().verify_export("exp-001.csv", query(&url), NOW), Ok(()));
        assert_eq!(urls().verify("exp-001.csv", query(&url), NOW), Err(UrlRefusal::Forged));
        let url = urls().sign("bin-001", LATER);
        assert_eq!(urls().verify_export("bin-001", query(&url), NOW), Err(UrlRefusal::Forged));
    }

    #[test]
    fn a_url_that_can_be_read_in_two_ways_is_refused() {
        let url = urls().sign("bin-001", LATER);
        let signed = query(&url);
        for query in ["", "expires=1", "signature=x", &format!("{signed}&expires=1"), &format!("signature=x&{signed}")]
        {
            assert_eq!(urls().verify("bin-001", query, NOW), Err(UrlRefusal::Incomplete), "{query}");
        }
        assert_eq!(urls().verify("bin-001", &format!("utm=1&{signed}"), NOW), Ok(()));
    }
}
