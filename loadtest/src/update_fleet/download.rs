//! Fetching an artifact as a device does: with Range after a broken connection, and its SHA-256 checked at the end.
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, RANGE};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use sha2::{Digest, Sha256};

use super::{lock, Shared};
use crate::target::Target;
use crate::transport;
use crate::updater::Fetch;
use crate::wire::Protocol;

/// Tries without a single new byte before a device gives a download up: a server's restart takes seconds.
const MAX_VAIN_TRIES: u32 = 40;

/// Wait between two tries.
const BACKOFF: Duration = Duration::from_millis(250);

/// Longest silence within a download.
const SILENCE: Duration = Duration::from_secs(10);

/// Why a try ended before the file was whole.
enum Broken {
    /// Again, from where it was.
    Resumable,
    /// For good.
    Final(&'static str),
}

/// What there is of the file.
struct Part {
    hasher: Sha256,
    bytes: u64,
}

/// Fetches a file, and tells the device's updater how far it is and how it ended.
pub(super) async fn fetch(shared: Arc<Shared>, index: usize, fetch: Fetch) {
    let Ok(_permit) = shared.downloads.acquire().await else { return };
    let outcome = whole(&shared, index, &fetch).await;
    let updater = &mut lock(&shared.devices[index]).updater;
    let was_working = updater.is_working();
    updater.fetched(&fetch, outcome, shared.millis(Instant::now()));
    shared.count_work(was_working, updater.is_working());
}

async fn whole(shared: &Shared, index: usize, fetch: &Fetch) -> Result<(), &'static str> {
    let uri: Uri = fetch.url.parse().map_err(|_| "the download URL is none")?;
    if uri.scheme_str() != Some("http") {
        return Err("only http is spoken by simulated devices");
    }
    let authority = uri.authority().map(http::uri::Authority::as_str).ok_or("the download URL names no host")?;
    let named = Target::parse(&format!("http://{authority}")).map_err(|_| "the download URL names no host")?;
    let mut part = Part { hasher: Sha256::new(), bytes: 0 };
    let mut vain_tries = 0;
    while vain_tries < MAX_VAIN_TRIES && !shared.is_stopped() {
        let before = part.bytes;
        match try_once(shared, index, fetch, &uri, &named, &mut part).await {
            Ok(()) => return check(fetch, part),
            Err(Broken::Final(why)) => return Err(why),
            Err(Broken::Resumable) => vain_tries = if part.bytes > before { 0 } else { vain_tries + 1 },
        }
        tokio::time::sleep(BACKOFF).await;
    }
    Err("the download broke off again and again")
}

async fn try_once(
    shared: &Shared,
    index: usize,
    fetch: &Fetch,
    uri: &Uri,
    named: &Target,
    part: &mut Part,
) -> Result<(), Broken> {
    let connection = match transport::connect(named, Protocol::Connect).await {
        Ok(connection) => connection,
        // A server that came back on another port is no longer where the URL says.
        Err(_) => transport::connect(&shared.target().1, Protocol::Connect).await.map_err(|_| Broken::Resumable)?,
    };
    tokio::spawn(connection.driver);
    let mut sender = connection.sender;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = Request::get(path).header(HOST, named.authority());
    if part.bytes > 0 {
        request = request.header(RANGE, format!("bytes={}-", part.bytes));
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|_| Broken::Final("the download URL is none"))?;
    let response = tokio::time::timeout(SILENCE, sender.send(request)).await;
    let response = response.map_err(|_| Broken::Resumable)?.map_err(|_| Broken::Resumable)?;
    match response.status() {
        StatusCode::OK => *part = Part { hasher: Sha256::new(), bytes: 0 },
        StatusCode::PARTIAL_CONTENT => {}
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => return Err(Broken::Resumable),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => return Err(Broken::Final("the download was refused")),
        _ => return Err(Broken::Final("the artifact is not there")),
    }
    let mut body = response.into_body();
    while part.bytes < fetch.size_bytes || fetch.size_bytes == 0 {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| Broken::Resumable)?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| Broken::Resumable)?.into_data() else { continue };
        part.hasher.update(&data);
        part.bytes += data.len() as u64;
        shared.counters.downloaded_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let percent = (part.bytes as f64 / fetch.size_bytes.max(1) as f64 * 100.0).min(100.0).round();
        lock(&shared.devices[index]).updater.fetching(fetch, percent);
    }
    if part.bytes < fetch.size_bytes {
        return Err(Broken::Resumable);
    }
    Ok(())
}

fn check(fetch: &Fetch, part: Part) -> Result<(), &'static str> {
    if fetch.size_bytes > 0 && part.bytes != fetch.size_bytes {
        return Err("the artifact has another length than it should");
    }
    let found: String = part.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match fetch.checksum.strip_prefix("sha256:") {
        Some(expected) if expected.eq_ignore_ascii_case(&found) => Ok(()),
        Some(_) => Err("the checksum of the artifact is wrong"),
        None => Err("the artifact came without a checksum"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_only_with_its_length_and_checksum() {
        let fetch = |checksum: &str, size_bytes| Fetch {
            deployment_id: "dep".to_owned(),
            attempt: 1,
            url: String::new(),
            checksum: checksum.to_owned(),
            size_bytes,
        };
        let part = || Part { hasher: Sha256::new_with_prefix(b"abc"), bytes: 3 };
        let right = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check(&fetch(right, 3), part()), Ok(()));
        assert_eq!(check(&fetch(&right.to_uppercase().replace("SHA", "sha"), 3), part()), Ok(()));
        for (checksum, size) in [(right, 4), (&right[..70], 3), ("md5:00", 3), ("", 3)] {
            assert!(check(&fetch(checksum, size), part()).is_err(), "{checksum} {size}");
        }
    }
}
