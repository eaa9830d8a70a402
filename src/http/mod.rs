//! The front door: one port for Connect, gRPC, gRPC-Web, and the endpoints that operations tools poll.
//!
//! [`front`] accepts and tells HTTP/1.1 from HTTP/2; [`http1`] and [`http2`] bring both to one [`gateway`], which
//! serves operations endpoints itself and hands RPCs to `connectrpc`; [`rpc`] decodes and dispatches them to the
//! services ([`device_service`], [`binary_service`], …); [`artifact_download`] serves files to plain HTTP clients; [`wire`] writes errors as each kind of client expects them.
pub mod access;
pub mod analytics_service;
pub mod answers;
pub mod artifact_download;
pub mod binary_service;
pub mod byte_range;
pub mod command_service;
pub mod density;
pub mod deployment_service;
pub mod deployment_view;
pub mod device_change;
pub mod device_edit;
pub mod device_fields;
pub mod device_health;
pub mod device_service;
pub mod direct;
pub mod event_service;
pub mod export_download;
pub mod exports;
pub mod front;
pub mod gateway;
pub mod hang_up;
pub mod heartbeats;
pub mod http1;
pub mod http2;
pub mod intake;
pub mod listing;
pub mod metrics_query;
mod near_names;
pub mod operations;
pub mod pages;
pub mod registration;
pub mod rpc;
pub mod update_service;
pub mod wire;
