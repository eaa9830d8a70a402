//! What a deployment installs: an update, and which of its files is for which device.
use std::collections::HashMap;
use std::sync::Arc;

use fleetd_proto::v1::{Artifact, Update, UpdateInfo};
use fleetd_proto::Timestamp;

use crate::artifacts::DownloadUrls;
use crate::clock::UnixMillis;
use crate::rollout::artifact;

/// An update as its deployments use it.
pub struct Release {
    pub update: Update,
    urls: DownloadUrls,
    /// The updates that brought the versions which devices ran before, for the way back.
    ways_back: HashMap<String, Update>,
}

/// The promise that goes with an offer.
pub struct Lease<'a> {
    pub deployment_id: &'a str,
    pub attempt: u32,
    pub accept_before: UnixMillis,
    pub finish_before: UnixMillis,
    pub is_rollback: bool,
}

impl Release {
    pub fn new(update: Update, urls: DownloadUrls, ways_back: HashMap<String, Update>) -> Self {
        Self { update, urls, ways_back }
    }

    /// The file for a device of this type and architecture.
    pub fn artifact(&self, device_type: &str, arch: &str) -> Option<&Artifact> {
        file_of(&self.update, device_type, arch)
    }

    /// The file that brings such a device back to a version; `None` when no update here ever brought it.
    pub fn way_back(&self, version: &str, device_type: &str, arch: &str) -> Option<&Artifact> {
        self.ways_back.get(version).and_then(|update| file_of(update, device_type, arch))
    }

    /// What a device is told. `version` and `file` are those of the way back when the lease is one; a way back for which
    /// no file is known leaves it to the device.
    pub fn offer(&self, lease: &Lease<'_>, version: &str, file: Option<&Artifact>) -> Arc<UpdateInfo> {
        let download_url = match file {
            Some(file) if !file.binary_id.is_empty() => self.urls.sign(&file.binary_id, lease.finish_before),
            Some(file) => file.url.clone(),
            None => String::new(),
        };
        Arc::new(UpdateInfo {
            update_id: self.update.id.clone(),
            deployment_id: lease.deployment_id.to_owned(),
            version: version.to_owned(),
            artifact: file.cloned(),
            attempt: lease.attempt,
            download_url,
            accept_before: Some(Timestamp::from_unix_millis(lease.accept_before.as_millis())),
            finish_before: Some(Timestamp::from_unix_millis(lease.finish_before.as_millis())),
            rollback: lease.is_rollback,
        })
    }
}

fn file_of<'a>(update: &'a Update, device_type: &str, arch: &str) -> Option<&'a Artifact> {
    artifact::choose(&update.artifacts, device_type, arch).map(|at| &update.artifacts[at])
}
