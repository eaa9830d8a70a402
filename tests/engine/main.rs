//! The embedded ClickHouse, end to end: the real library in a real child process, over real sockets.
mod client_crate;
mod inserts;
mod interface;
mod supervision;
mod support;
