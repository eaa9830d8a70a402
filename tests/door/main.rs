//! What comes to the door, over real sockets against the real program: bad input of every kind, by every kind of
//! client, and the promise that after each of it a healthy client is served at once and no memory is gone.
#[path = "../support/mod.rs"]
mod support;

mod framing;
mod headers;
mod limits;
mod messages;
mod methods;
mod reference;
mod slow;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use support::client::{proto, Client};
use support::{Options, Server};

/// A heartbeat of a healthy device takes some 1 ms; this much is allowed beside everything else on the machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What the server may grow by during one attack, all tests that run beside it included.
const GROWTH_ALLOWED: u64 = 64 << 20;

/// A server without rate limits, with one registered device. Tests that run at the same time share it.
pub struct Door {
    pub server: Server,
    pub key: String,
}

/// The device of [`Door::key`].
pub const DEVICE: &str = "door-001";

impl Door {
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Door>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(door) = shared.upgrade() {
            return door;
        }
        let server = Server::with(Options::default().unlimited());
        let key = server.register(DEVICE);
        let door = Arc::new(Self { server, key });
        *shared = Arc::downgrade(&door);
        door
    }

    /// Runs `attack`, then checks that a healthy client is served at once and that the memory did not jump.
    pub fn unharmed<T>(&self, name: &str, attack: impl FnOnce() -> T) -> T {
        let before = self.server.resident_bytes();
        let result = attack();
        for client in [Client::Json1, Client::Grpc2] {
            let asked = Instant::now();
            let reply = client.send(self.server.http(), &self.heartbeat(client));
            let took = asked.elapsed();
            let outcome = client.outcome(&reply);
            assert_eq!(outcome.code, "OK", "{name}: a healthy {client:?} afterwards: {outcome:?}");
            assert!(took < AT_ONCE, "{name}: a healthy {client:?} waited {took:?}");
        }
        let grown = self.server.resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_ALLOWED, "{name}: the server grew by {} MiB", grown >> 20);
        result
    }

    /// A heartbeat as it should be.
    pub fn heartbeat(&self, client: Client) -> support::wire::Ask {
        let json = format!(r#"{{"device_id":"{DEVICE}","stats":{{"cpu_percent":25.5}}}}"#);
        let message = if client.is_json() { json.into_bytes() } else { proto::heartbeat(DEVICE) };
        client.call("DeviceService/Heartbeat", Some(&self.key), &message)
    }

    /// Sends `ask` and gives what the client was told, checking its form.
    pub fn outcome(&self, client: Client, ask: &support::wire::Ask) -> support::client::Outcome {
        client.outcome(&client.send(self.server.http(), ask))
    }
}
