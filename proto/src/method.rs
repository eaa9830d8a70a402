//! The table of all RPCs, made from the `.proto` files: what dispatch answers UNIMPLEMENTED for, and what the
//! authorization test walks, so that neither can forget one.

/// How many messages each side of a call sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStreaming,
    /// Many requests, one response.
    ClientStreaming,
    /// Many of both, at the same time.
    BidiStreaming,
}

/// One RPC of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method {
    /// The path of its URL without the first slash: `fleetd.v1.DeviceService/Heartbeat`.
    pub path: &'static str,
    /// Full name of its service: `fleetd.v1.DeviceService`.
    pub service: &'static str,
    /// Its name within the service: `Heartbeat`.
    pub name: &'static str,
    /// How many messages each side sends.
    pub kind: MethodKind,
    /// Whether it only reads (`idempotency_level = NO_SIDE_EFFECTS`), so that Connect's GET may call it.
    pub no_side_effects: bool,
    /// What a caller must be allowed to do: `device:heartbeat`. From the line "Permission: ..." of its comment.
    pub permission: &'static str,
}

impl Method {
    /// The method with this path (no first slash), if the contract has one.
    pub fn find(path: &str) -> Option<&'static Method> {
        METHODS.iter().find(|method| method.path == path)
    }
}

/// Every RPC of the contract, in the order of the files.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
