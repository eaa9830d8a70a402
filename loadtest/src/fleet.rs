//! The simulated fleet: its devices with their keys, registered once and then run as often as one likes.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fleetd_proto::v1::GetDeviceRequest;
use tokio::sync::mpsc;

use crate::client::Client;
use crate::code::Code;
use crate::device::Device;
use crate::error::LoadError;
use crate::keys::KeysFile;
use crate::ledger::Ledger;
use crate::random::Random;
use crate::run::{Load, Run};
use crate::slot::unix_ms;
use crate::target::Target;
use crate::wire::{self, CallError, Protocol};

/// Registrations under way at a time. Enough to fill a group commit of the server's store, and no burst for it.
const REGISTRATIONS_IN_FLIGHT: usize = 64;

/// How often one registration is tried while the server is busy or away.
const REGISTRATION_TRIES: u32 = 10;

/// Wait after the first failed try; doubled with each, so that all tries together take some ten seconds.
const REGISTRATION_BACKOFF: Duration = Duration::from_millis(20);

/// Which devices there are, and where.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    pub target: Target,
    /// An admin key; `None` registers without one.
    pub admin_key: Option<String>,
    pub protocol: Protocol,
    pub devices: usize,
    /// Devices are `PREFIX-000000` and on. `None` makes up a prefix that no other run has.
    pub id_prefix: Option<String>,
    /// Where the keys of devices that are registered already are found, and those of new ones are added.
    pub keys: Option<PathBuf>,
}

/// Devices that the server knows.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) target: Target,
    pub(crate) devices: Vec<Device>,
}

impl Fleet {
    /// Registers the devices, some at a time; `on_progress` is told how many are there.
    pub async fn register(options: &FleetOptions, mut on_progress: impl FnMut(usize)) -> Result<Self, LoadError> {
        let prefix = options.id_prefix.clone().unwrap_or_else(fresh_prefix);
        let mut keys_file = options.keys.as_deref().map(KeysFile::open).transpose()?;
        let mut known = keys_file.as_ref().map(KeysFile::keys).transpose()?.unwrap_or_default();
        if !keys_still_hold(options, &prefix, &known).await? {
            known.clear();
        }

        let now_ms = unix_ms();
        let mut devices = Vec::with_capacity(options.devices);
        let mut missing = Vec::new();
        for index in 0..options.devices {
            let id = device_id(&prefix, index);
            match known.remove(&id) {
                Some(key) => devices.push((index, id, key)),
                None => missing.push((index, id)),
            }
        }
        on_progress(devices.len());

        let (done, mut results) = mpsc::channel(REGISTRATIONS_IN_FLIGHT);
        let missing = Arc::new(std::sync::Mutex::new(missing.into_iter()));
        for _ in 0..REGISTRATIONS_IN_FLIGHT.min(options.devices) {
            let client = Client::new(&options.target, options.protocol, options.admin_key.as_deref())?;
            let (missing, done) = (Arc::clone(&missing), done.clone());
            tokio::spawn(register_each(client, missing, done));
        }
        drop(done);
        while let Some(result) = results.recv().await {
            let (index, id, key) = result?;
            if let Some(file) = &mut keys_file {
                file.add(&id, &key)?;
            }
            devices.push((index, id, key));
            on_progress(devices.len());
        }
        devices.sort_unstable_by_key(|(index, ..)| *index);
        let devices = devices
            .into_iter()
            .map(|(index, id, key)| Ok(Device::new(id, wire::bearer(&key, "a device's key")?, index, now_ms)))
            .collect::<Result<Vec<_>, LoadError>>()?;
        Ok(Self { target: options.target.clone(), devices })
    }

    /// Starts to heartbeat as `load` says. The fleet comes back from [`Run::finish`].
    pub fn start(self, load: &Load) -> Result<Run, LoadError> {
        Run::start(self, load)
    }

    /// All that was acknowledged so far, over all runs that kept a ledger.
    pub fn ledger(&self) -> Ledger<'_> {
        Ledger::new(self.devices.iter().map(|device| (device.id.as_str(), &device.trail)))
    }

    pub fn len(&self) -> usize {
        self.devices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }
}

fn device_id(prefix: &str, index: usize) -> String {
    format!("{prefix}-{index:06}")
}

/// `sim-` and eight hex digits of the time and the process: two runs meet by chance once in some billions.
fn fresh_prefix() -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut random = Random::new(nanos as u64 ^ (u64::from(std::process::id()) << 40));
    format!("sim-{:08x}", random.next() as u32)
}

/// Asks for one device whose key is known: a server with a new data directory has forgotten them all.
async fn keys_still_hold(
    options: &FleetOptions,
    prefix: &str,
    known: &HashMap<String, String>,
) -> Result<bool, LoadError> {
    let Some(device_id) = (0..options.devices).map(|index| device_id(prefix, index)).find(|id| known.contains_key(id))
    else {
        return Ok(true);
    };
    let mut client = Client::new(&options.target, options.protocol, options.admin_key.as_deref())?;
    let asked = client.get_device(&GetDeviceRequest { device_id, ..GetDeviceRequest::default() }).await;
    Ok(!matches!(asked, Err(CallError::Refused(refusal)) if refusal.code == Code::NOT_FOUND))
}

type Registered = Result<(usize, String, String), LoadError>;

async fn register_each(
    mut client: Client,
    missing: Arc<std::sync::Mutex<std::vec::IntoIter<(usize, String)>>>,
    done: mpsc::Sender<Registered>,
) {
    loop {
        let next = missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let Some((index, id)) = next else { return };
        let result = register_one(&mut client, index, id).await;
        let failed = result.is_err();
        if done.send(result).await.is_err() || failed {
            return;
        }
    }
}

async fn register_one(client: &mut Client, index: usize, id: String) -> Registered {
    let mut backoff = REGISTRATION_BACKOFF;
    let mut name = id.clone();
    let mut outcome_unknown = false;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let refused = match client.register(&Device::registration(&name, index)).await {
            Ok(reply) => return Ok((index, name, reply.message.api_key)),
            Err(error) => error,
        };
        match (refused.code(), &refused) {
            // An earlier try of ours may have gone through, and its answer with the key is lost. The device stays
            // there without us; another takes its place.
            (Some(Code::ALREADY_EXISTS), _) if outcome_unknown => {
                name = format!("{id}.{attempt}");
                outcome_unknown = false;
                continue;
            }
            (Some(Code::ALREADY_EXISTS), _) => return Err(LoadError::KeyUnknown { device_id: name }),
            (Some(code), CallError::Refused(refusal)) => {
                let later = matches!(code, Code::UNAVAILABLE | Code::RESOURCE_EXHAUSTED);
                if !later || attempt >= REGISTRATION_TRIES {
                    let message = refusal.message.clone();
                    return Err(LoadError::Registration { device_id: name, code, message });
                }
                outcome_unknown |= code.leaves_outcome_open();
            }
            _ if attempt >= REGISTRATION_TRIES => {
                return Err(LoadError::Unreachable {
                    authority: client.authority().to_owned(),
                    source: refused.into(),
                });
            }
            _ => outcome_unknown = true,
        }
        tokio::time::sleep(backoff).await;
        backoff *= 2;
    }
}
