//! Who is calling, may they, and how often: decided once for each request, before any work is done for it.
//!
//! A device's key is checked against the entry of the device that it speaks for, in memory. Only a key that does
//! not fit is looked up in the store, to tell "another device's key" (PERMISSION_DENIED) from "no such key"
//! (UNAUTHENTICATED); that is paid from the caller's anonymous limit, so that guessing keys cannot load the store.
use std::net::IpAddr;
use std::sync::Arc;

use connectrpc::RequestContext;
use http::HeaderMap;

use super::answers::AnswerSlot;
use super::device_service::no_device;
use super::gateway::Peer;
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::DeviceEntry;
use crate::analytics::Held;
use crate::auth::credential::{self, Credential, CredentialError};
use crate::auth::rate_limit::{ClientNetwork, Gcra, KeyedBuckets, Quota, RateLimit};
use crate::auth::{self, AdminKey, Claim, DeviceAccess, KeyHash, Principal, Rule};
use crate::clock;
use crate::config::RateLimits;
use crate::error::{ApiError, ErrorCode};
use crate::ids::DeviceId;
use crate::store::Store;

/// A request as the services see it, besides its message.
pub struct Call {
    credential: Result<Option<Credential>, CredentialError>,
    peer: IpAddr,
    /// What is left of the caller's limit; becomes `X-RateLimit-*`.
    pub quota: Option<Quota>,
    /// Who the caller turned out to be; signs errors.
    user_id: Option<String>,
    /// The room that the answer takes, where it takes some.
    pub held: Option<Held>,
    /// Where that goes when the answer is encoded.
    slot: Option<AnswerSlot>,
}

impl Call {
    pub fn new(credential: Result<Option<Credential>, CredentialError>, peer: IpAddr) -> Self {
        Self { credential, peer, quota: None, user_id: None, held: None, slot: None }
    }

    pub fn from_context(context: &RequestContext) -> Self {
        // The gateway adds the peer to every request; without it the caller shares the bucket of nobody.
        let peer = context.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
        let slot = context.extensions().get::<AnswerSlot>().cloned();
        Self { slot, ..Self::new(credential_of(context.headers()), peer) }
    }

    /// The answer has been encoded, and waits for its client from now on.
    ///
    /// # Errors
    /// UNAVAILABLE when other answers leave no room for it.
    pub fn settle(&mut self, bytes: usize) -> Result<(), ApiError> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        held.resize(bytes)?;
        if let Some(slot) = &self.slot {
            slot.put(held);
        }
        Ok(())
    }

    /// Who the caller turned out to be; `None` before [`Access`] said so, and for an anonymous one.
    pub fn user_id(&self) -> Option<&str> {
        self.user_id.as_deref()
    }

    /// Says in the error who was refused.
    pub fn sign(&self, mut error: ApiError) -> ApiError {
        if error.user_id.is_none() {
            error.user_id.clone_from(&self.user_id);
        }
        error
    }
}

pub(super) fn credential_of(headers: &HeaderMap) -> Result<Option<Credential>, CredentialError> {
    let values = |name| headers.get_all(name).into_iter().map(http::HeaderValue::as_bytes);
    credential::from_headers(values("authorization"), values("x-api-key"))
}

/// Who sends many heartbeats, decided once.
#[derive(Clone)]
pub struct Speaker {
    principal: Principal,
    /// A device's own key, as it was when it began to speak.
    key: Option<KeyHash>,
    rule: Rule,
}

/// Decides. One for the whole server.
pub struct Access {
    admin: AdminKey,
    directory: DeviceDirectory,
    store: Arc<dyn Store>,
    anonymous: Option<KeyedBuckets<ClientNetwork>>,
    /// A device's limit, for each of its buckets.
    device: Option<RateLimit>,
}

impl Access {
    pub fn new(admin: AdminKey, directory: DeviceDirectory, store: Arc<dyn Store>, limits: RateLimits) -> Self {
        Self {
            admin,
            directory,
            store,
            anonymous: RateLimit::per_second(limits.anonymous_per_second).map(KeyedBuckets::new),
            device: RateLimit::per_minute(limits.device_per_minute),
        }
    }

    /// For RPCs that concern no single device.
    pub async fn authorize(&self, call: &mut Call, method: &str) -> Result<Principal, ApiError> {
        let principal = self.identify(call, None).await?;
        auth::authorize(&principal, rule_of(method)?, None)?;
        Ok(principal)
    }

    /// For downloads, which a device pays from a bucket of their own.
    pub async fn authorize_download(&self, call: &mut Call, method: &str) -> Result<(), ApiError> {
        let principal = self.authorize(call, method).await?;
        if let Principal::Device(id) = &principal {
            if let Some(entry) = self.directory.find(id.as_str()) {
                self.take(call, &entry.limits.downloads)?;
            }
        }
        Ok(())
    }

    /// For RPCs that name a device. Refuses before it says whether the device exists.
    pub async fn authorize_for_device(
        &self,
        call: &mut Call,
        method: &str,
        device_id: &str,
    ) -> Result<Arc<DeviceEntry>, ApiError> {
        self.admit(call, method, device_id, |entry| &entry.limits.requests).await
    }

    /// As [`Self::authorize_for_device`], paid from the bucket that heartbeats have for themselves.
    pub async fn authorize_heartbeat(
        &self,
        call: &mut Call,
        method: &str,
        device_id: &str,
    ) -> Result<Arc<DeviceEntry>, ApiError> {
        self.admit(call, method, device_id, |entry| &entry.limits.heartbeats).await
    }

    /// For calls with many heartbeats, of which `first` names the device of the first: who speaks.
    pub async fn authorize_speaker(&self, call: &mut Call, method: &str, first: &str) -> Result<Speaker, ApiError> {
        let expected = self.directory.find(first);
        let principal = self.identify(call, expected.as_ref()).await?;
        let rule = rule_of(method)?;
        let (own, key) = match &principal {
            Principal::Device(id) => {
                let entry = self.directory.find(id.as_str()).ok_or_else(|| no_device(id.as_str()))?;
                (Some(id.clone()), Some(entry.key_hash))
            }
            _ => (None, None),
        };
        auth::authorize(&principal, rule, own.as_ref())?;
        Ok(Speaker { principal, key, rule })
    }

    /// One heartbeat of many, paid from its device's bucket for heartbeats.
    pub fn admit_heartbeat(
        &self,
        call: &mut Call,
        speaker: &Speaker,
        device_id: &str,
    ) -> Result<Arc<DeviceEntry>, ApiError> {
        let Some(entry) = self.directory.find(device_id) else {
            let named = DeviceId::parse(device_id);
            let named = named.map_err(|reason| ApiError::invalid_argument(format!("device_id {reason}")))?;
            auth::authorize(&speaker.principal, speaker.rule, Some(&named))?;
            return Err(no_device(device_id));
        };
        auth::authorize(&speaker.principal, speaker.rule, Some(&entry.id))?;
        if speaker.key.is_some_and(|key| key != entry.key_hash) {
            // Deleted and registered anew while the stream went on: another device, with another key.
            return Err(CredentialError::Unknown.into());
        }
        if !speaker.principal.is_exempt_from_rate_limits() {
            self.take(call, &entry.limits.heartbeats)?;
        }
        Ok(entry)
    }

    async fn admit(
        &self,
        call: &mut Call,
        method: &str,
        device_id: &str,
        bucket: impl FnOnce(&DeviceEntry) -> &Gcra + Send,
    ) -> Result<Arc<DeviceEntry>, ApiError> {
        let entry = self.directory.find(device_id);
        let principal = self.identify(call, entry.as_ref()).await?;
        let rule = rule_of(method)?;
        if principal == Principal::Anonymous || rule.devices == DeviceAccess::Never {
            // Who shows no key, or one that never may, is told that first, whatever else is wrong with the request.
            auth::authorize(&principal, rule, None)?;
        }
        if let Err(reason) = DeviceId::check(device_id) {
            return Err(ApiError::invalid_argument(format!("device_id {reason}")));
        }
        match entry {
            Some(entry) => {
                auth::authorize(&principal, rule, Some(&entry.id))?;
                if !principal.is_exempt_from_rate_limits() {
                    self.take(call, bucket(&entry))?;
                }
                Ok(entry)
            }
            None if principal == Principal::Admin => Err(no_device(device_id)),
            None => {
                let named = DeviceId::parse(device_id).ok();
                auth::authorize(&principal, rule, named.as_ref())?;
                Err(no_device(device_id))
            }
        }
    }

    /// Takes one request out of a device's bucket.
    fn take(&self, call: &mut Call, bucket: &Gcra) -> Result<(), ApiError> {
        let Some(limit) = &self.device else { return Ok(()) };
        let decision = bucket.check(limit, clock::monotonic_nanos());
        call.quota = Some(decision.quota);
        decision.into_result().map(|_| ())
    }

    /// Who shows this credential. `expected` is the device that the request names, if it is known.
    async fn identify(&self, call: &mut Call, expected: Option<&Arc<DeviceEntry>>) -> Result<Principal, ApiError> {
        let principal = match &call.credential {
            Ok(Some(credential)) => match credential.claim(&self.admin) {
                Claim::Admin => Principal::Admin,
                Claim::Device(hash) => match expected {
                    Some(entry) if entry.key_hash == hash => Principal::Device(entry.id.clone()),
                    _ => {
                        self.take_anonymous(call)?;
                        match self.store.device_of_key(&hash).await? {
                            Some(id) => Principal::Device(id),
                            None => return Err(CredentialError::Unknown.into()),
                        }
                    }
                },
                Claim::Unknown => {
                    self.take_anonymous(call)?;
                    return Err(CredentialError::Unknown.into());
                }
            },
            Ok(None) => {
                self.take_anonymous(call)?;
                Principal::Anonymous
            }
            Err(error) => {
                let error = *error;
                self.take_anonymous(call)?;
                return Err(error.into());
            }
        };
        call.user_id = principal.user_id();
        Ok(principal)
    }

    /// What to answer to a request that could not be decoded, which is `error` or that there were too many: it
    /// names no device whose limit could pay, so the caller's network does, unless it shows the admin's key.
    pub fn undecodable(&self, call: &mut Call, error: ApiError) -> ApiError {
        if let Ok(Some(credential)) = &call.credential {
            if credential.claim(&self.admin) == Claim::Admin {
                return error;
            }
        }
        self.take_anonymous(call).err().unwrap_or(error)
    }

    /// Takes one request out of the bucket of the caller's network.
    fn take_anonymous(&self, call: &mut Call) -> Result<(), ApiError> {
        let Some(buckets) = &self.anonymous else { return Ok(()) };
        let decision = buckets.check(ClientNetwork::from(call.peer), clock::monotonic_nanos());
        call.quota = Some(decision.quota);
        decision.into_result().map(|_| ())
    }
}

fn rule_of(method: &str) -> Result<Rule, ApiError> {
    // A test walks every method of the contract, so this is a new RPC that skipped it: refuse, never allow.
    auth::rule(method).ok_or_else(|| ApiError::new(ErrorCode::Internal, format!("{method} has no permission rule")))
}
