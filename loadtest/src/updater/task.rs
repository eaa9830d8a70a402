//! One attempt under way: which stage it is in, since when, and what it will come to.
use fleetd_proto::v1::update_progress::State;
use fleetd_proto::v1::UpdateInfo;

use super::behaviour::Fate;

/// Where the device is with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It said yes, and waits to hear that this is known.
    Accepting,
    Rejecting,
    Downloading,
    Downloaded,
    Installing,
    /// It says that it is about to restart; it does so after one try, heard or not.
    Rebooting,
    /// It restarts, and says nothing.
    Down,
    Confirming,
    Succeeded,
    Failed,
    Reverted,
}

impl Stage {
    pub(super) fn wire(self) -> State {
        match self {
            Self::Accepting => State::Accepted,
            Self::Rejecting => State::Rejected,
            Self::Downloading => State::Downloading,
            Self::Downloaded => State::Downloaded,
            Self::Installing => State::Installing,
            Self::Rebooting | Self::Down => State::Rebooting,
            Self::Confirming => State::Confirming,
            Self::Succeeded => State::Succeeded,
            Self::Failed => State::Failed,
            Self::Reverted => State::Reverted,
        }
    }

    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Rejecting | Self::Succeeded | Self::Failed | Self::Reverted)
    }

    /// From the acknowledged acceptance to the first heartbeat afterwards: the server must hold a slot for it.
    pub(super) fn is_working(self) -> bool {
        matches!(self, Self::Downloading | Self::Downloaded | Self::Installing | Self::Rebooting | Self::Down)
    }
}

/// The attempt that the device works on, or worked on last.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) offer: UpdateInfo,
    pub(super) fate: Fate,
    /// The version to go back to.
    pub(super) before: String,
    pub(super) stage: Stage,
    pub(super) since: u64,
    /// When the stage ends by itself.
    pub(super) due: Option<u64>,
    /// Whether the final state was acknowledged: there is nothing more to say.
    pub(super) is_heard: bool,
    pub(super) percent: f64,
    pub(super) message: &'static str,
    /// Whether `percent` and the end of the download are told from outside.
    pub(super) fetches: bool,
}

/// A file that the device is to fetch; the outcome comes back with `Updater::fetched`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub deployment_id: String,
    pub attempt: u32,
    pub url: String,
    /// As in Artifact.checksum.
    pub checksum: String,
    pub size_bytes: u64,
}
