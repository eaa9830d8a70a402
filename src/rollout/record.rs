//! What a deployment remembers of one device: 48 bytes in memory, 49 in the registry. Everything that is decided about
//! the device is decided from this, so that a deployment that is loaded again decides the same.
use super::DeviceState;

/// Bytes of an encoded record.
pub const RECORD_BYTES: usize = 49;
/// First byte of an encoded record.
const VERSION: u8 = 1;

/// Why a device is where it is. The numbers are in the registry: they keep their meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    #[default]
    Nothing = 0,
    Offline = 1,
    Maintenance = 2,
    WindowClosed = 3,
    InOtherDeployment = 4,
    /// It had the offer, and let it lapse.
    AcceptTimeout = 5,
    FinishTimeout = 6,
    /// It said that it was done, and never showed the version.
    NotConfirmed = 7,
    /// It said that it failed.
    Reported = 8,
    /// It declined.
    Rejected = 9,
    /// It went silent after accepting.
    Silent = 10,
    /// It had succeeded, and went back.
    Reverted = 11,
    /// Its offer was taken back before it accepted.
    OfferRevoked = 12,
    /// It had been given up, and then showed the version after all.
    Recovered = 13,
    /// An operator queued it again.
    RetryOrdered = 14,
    /// It runs neither the update's version nor the one before.
    OtherVersion = 15,
}

impl Why {
    pub(super) const ALL: [Self; 16] = [
        Self::Nothing,
        Self::Offline,
        Self::Maintenance,
        Self::WindowClosed,
        Self::InOtherDeployment,
        Self::AcceptTimeout,
        Self::FinishTimeout,
        Self::NotConfirmed,
        Self::Reported,
        Self::Rejected,
        Self::Silent,
        Self::Reverted,
        Self::OfferRevoked,
        Self::Recovered,
        Self::RetryOrdered,
        Self::OtherVersion,
    ];

    /// Stable upper-case code; empty for [`Why::Nothing`].
    pub fn code(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Offline => "OFFLINE",
            Self::Maintenance => "MAINTENANCE",
            Self::WindowClosed => "WINDOW_CLOSED",
            Self::InOtherDeployment => "IN_OTHER_DEPLOYMENT",
            Self::AcceptTimeout => "ACCEPT_TIMEOUT",
            Self::FinishTimeout => "FINISH_TIMEOUT",
            Self::NotConfirmed => "NOT_CONFIRMED",
            Self::Reported => "REPORTED",
            Self::Rejected => "REJECTED",
            Self::Silent => "SILENT",
            Self::Reverted => "REVERTED",
            Self::OfferRevoked => "OFFER_REVOKED",
            Self::Recovered => "RECOVERED",
            Self::RetryOrdered => "RETRY_ORDERED",
            Self::OtherVersion => "OTHER_VERSION",
        }
    }
}

pub(super) mod flag {
    /// It accepted the offer of this attempt.
    pub const ACCEPTED: u16 = 1;
    /// A heartbeat after accepting showed the update's version; `Record::since` says from when on.
    pub const TARGET_SEEN: u16 = 1 << 1;
    /// It said that it is back; what it runs must show it.
    pub const SAID_BACK: u16 = 1 << 2;
    /// It failed before the rollback, and may run the update's version all the same: ask.
    pub const DOUBTFUL: u16 = 1 << 3;
    /// It ended here, and is another deployment's since, or deleted: what it runs says nothing any more.
    pub const LEFT: u16 = 1 << 4;
    /// It was given up, and succeeded after all.
    pub const RECOVERED: u16 = 1 << 5;
    /// It was offered the way back, and took it or let it lapse.
    pub const BACK_ATTEMPTED: u16 = 1 << 6;
    /// Changed since the last effects were taken. Never kept in the registry.
    pub const DIRTY: u16 = 1 << 15;
}

/// One device of a deployment. Moments are in watched time (`Now::watched`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was offered the update (or the way back) last.
    pub(super) offered: u64,
    /// When it accepted; only with [`flag::ACCEPTED`].
    pub(super) accepted: u64,
    /// When it was last heard from, while it works, exact to half of `vanish_timeout`; then the end of its attempt.
    pub(super) heard: u64,
    /// CONFIRMING: since when it shows the version. RETRY_WAIT: until when it waits. Else when the state was reached.
    pub(super) since: u64,
    pub(super) attempt: u32,
    /// The epoch of the brake's counts in which it was attempted last; 0: never attempted.
    pub(super) attempted_in: u16,
    /// The epoch in which it failed last; 0: it did not fail, or succeeded since.
    pub(super) failed_in: u16,
    pub(super) wave: u16,
    pub(super) flags: u16,
    /// Attempts that failed since it was queued first or by an operator: what `max_attempts` bounds.
    pub(super) tries: u8,
    state: u8,
    pub(super) why: Why,
    /// Why it failed last, while `failed_in` is set.
    pub(super) failed_why: Why,
}

/// A kept record that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record has {0} bytes instead of {RECORD_BYTES}")]
    Length(usize),
    #[error("a record has the unknown version {0}")]
    Version(u8),
    #[error("a record has the unknown state {0}")]
    State(u8),
    #[error("a record has the unknown reason {0}")]
    Why(u8),
}

impl Record {
    pub(super) fn new(wave: u16, state: DeviceState) -> Self {
        Self {
            offered: 0,
            accepted: 0,
            heard: 0,
            since: 0,
            attempt: 0,
            attempted_in: 0,
            failed_in: 0,
            wave,
            flags: 0,
            tries: 0,
            state: state as u8,
            why: Why::Nothing,
            failed_why: Why::Nothing,
        }
    }

    pub fn state(&self) -> DeviceState {
        DeviceState::try_from(i32::from(self.state)).unwrap_or_default()
    }

    pub fn wave(&self) -> usize {
        usize::from(self.wave)
    }

    /// Number of the last offer, from 1; 0 before the first one.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Stable upper-case code of why it is where it is; empty where the state says it all.
    pub fn reason_code(&self) -> &'static str {
        self.why.code()
    }

    /// Whether its attempts have failed so far: true until it succeeds.
    pub fn has_failed(&self) -> bool {
        self.failed_in != 0
    }

    /// Whether it ever took an offer, declined one, or let one lapse.
    pub fn is_attempted(&self) -> bool {
        self.attempted_in != 0
    }

    /// Whether it had been given up, and succeeded after all.
    pub fn is_recovered(&self) -> bool {
        self.has(flag::RECOVERED)
    }

    /// When the last offer went out, in watched time.
    pub fn offered_at(&self) -> Option<u64> {
        (self.attempt > 0).then_some(self.offered)
    }

    /// When the last offer was accepted, in watched time.
    pub fn accepted_at(&self) -> Option<u64> {
        self.has(flag::ACCEPTED).then_some(self.accepted)
    }

    /// Whether it holds a slot of `max_parallel`.
    pub fn is_active(&self) -> bool {
        is_active(self.state())
    }

    /// Whether an offer stands that it has not accepted.
    pub fn is_offered(&self) -> bool {
        match self.state() {
            DeviceState::Offered => true,
            DeviceState::RollingBack => !self.has(flag::ACCEPTED),
            _ => false,
        }
    }

    /// Whether it is another deployment's since, or deleted.
    pub fn has_left(&self) -> bool {
        self.has(flag::LEFT)
    }

    /// Whether the device belongs to its deployment until that is over.
    pub fn is_in_play(&self) -> bool {
        use DeviceState as D;
        !self.has_left() && !matches!(self.state(), D::AlreadyInstalled | D::Incompatible | D::Removed | D::Superseded)
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn put(&mut self, flag: u16, is_set: bool) {
        if is_set {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    pub(super) fn enter(&mut self, state: DeviceState, why: Why) {
        self.state = state as u8;
        self.why = why;
    }

    /// Puts one that was queued to go back where it was: it runs the update's version.
    pub(super) fn undo_way_back(&mut self) {
        if matches!(self.state(), DeviceState::RollbackQueued | DeviceState::RollingBack) {
            self.enter(DeviceState::Succeeded, Why::Nothing);
            self.flags &= !(flag::DOUBTFUL | flag::SAID_BACK | flag::BACK_ATTEMPTED);
            (self.failed_in, self.failed_why) = (0, Why::Nothing);
        }
    }

    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let (version, rest) = bytes.split_at_mut(1);
        version.copy_from_slice(&[VERSION]);
        let mut rest = rest;
        let mut put = |part: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        };
        for moment in [self.offered, self.accepted, self.heard, self.since] {
            put(&moment.to_le_bytes());
        }
        put(&self.attempt.to_le_bytes());
        for short in [self.attempted_in, self.failed_in, self.wave, self.flags & !flag::DIRTY] {
            put(&short.to_le_bytes());
        }
        put(&[self.tries, self.state, self.why as u8, self.failed_why as u8]);
        bytes
    }

    /// # Errors
    /// When the bytes are not such a record, or one of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let length = RecordError::Length(bytes.len());
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().map_err(|_| length.clone())?;
        let [version, rest @ ..] = bytes;
        if *version != VERSION {
            return Err(RecordError::Version(*version));
        }
        let mut parts = Parts(rest);
        let [offered, accepted, heard, since] = [parts.take(), parts.take(), parts.take(), parts.take()];
        let attempt = u32::from_le_bytes(parts.take());
        let [attempted_in, failed_in, wave, flags] = [parts.take(), parts.take(), parts.take(), parts.take()];
        let [tries, state, why, failed_why] = parts.take();
        if DeviceState::try_from(i32::from(state)).is_err() {
            return Err(RecordError::State(state));
        }
        let why_of = |why: u8| Why::ALL.get(usize::from(why)).copied().ok_or(RecordError::Why(why));
        Ok(Self {
            offered: u64::from_le_bytes(offered),
            accepted: u64::from_le_bytes(accepted),
            heard: u64::from_le_bytes(heard),
            since: u64::from_le_bytes(since),
            attempt,
            attempted_in: u16::from_le_bytes(attempted_in),
            failed_in: u16::from_le_bytes(failed_in),
            wave: u16::from_le_bytes(wave),
            flags: u16::from_le_bytes(flags) & !flag::DIRTY,
            tries,
            state,
            why: why_of(why)?,
            failed_why: why_of(failed_why)?,
        })
    }
}

/// Takes pieces off the front of bytes whose length was checked.
struct Parts<'a>(&'a [u8]);

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((part, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *part
    }
}

/// Whether a device in this state holds a slot of `max_parallel`.
pub fn is_active(state: DeviceState) -> bool {
    use DeviceState as D;
    matches!(
        state,
        D::Offered
            | D::Accepted
            | D::Downloading
            | D::Downloaded
            | D::Installing
            | D::Rebooting
            | D::Confirming
            | D::RollingBack
    )
}

/// Whether a device in this state works on an update that it accepted.
pub(super) fn is_working(state: DeviceState) -> bool {
    is_active(state) && !matches!(state, DeviceState::Offered | DeviceState::RollingBack)
}

/// Whether there never was anything to do for it.
pub(super) fn is_without_work(state: DeviceState) -> bool {
    matches!(state, DeviceState::AlreadyInstalled | DeviceState::Incompatible)
}
