//! The yardstick: an actix-web handler that decodes a heartbeat and acknowledges it, and does nothing else.
//!
//! It answers RegisterDevice too, so that the generator treats it as it treats the server. Two workers and mimalloc, as
//! the server has on the machine of design section 11.
use std::net::{SocketAddr, TcpListener};

use actix_web::http::StatusCode;
use actix_web::{web, App, HttpResponse, HttpServer};
use bytes::Bytes;
use fleetd_proto::v1::{HeartbeatRequest, HeartbeatResponse, RegisterDeviceRequest, RegisterDeviceResponse};
use prost::Message;

use crate::error::LoadError;

/// What the ready line on standard output begins with; the address follows as `http=http://ADDRESS`.
pub const READY: &str = "bare ready";

/// Serves until the process gets SIGTERM or SIGINT. Prints the ready line once it listens.
pub fn serve(listen: SocketAddr) -> Result<(), LoadError> {
    let failed = |source| LoadError::Io { operation: format!("serve the bare handler on {listen}"), source };
    let listener = TcpListener::bind(listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(|| {
            App::new()
                .route("/fleetd.v1.DeviceService/Heartbeat", web::post().to(heartbeat))
                .route("/fleetd.v1.DeviceService/RegisterDevice", web::post().to(register))
        });
        let server = server.workers(2).listen(listener).map_err(failed)?.run();
        println!("{READY} http=http://{address}");
        server.await.map_err(failed)
    })
}

async fn heartbeat(body: Bytes) -> HttpResponse {
    match HeartbeatRequest::decode(body) {
        // An id is all that is looked at: enough that the decoding cannot be optimised away.
        Ok(request) if !request.device_id.is_empty() => {
            answer(&HeartbeatResponse { acknowledged: true, ..HeartbeatResponse::default() })
        }
        _ => refusal(),
    }
}

async fn register(body: Bytes) -> HttpResponse {
    match RegisterDeviceRequest::decode(body) {
        Ok(request) if !request.device_id.is_empty() => answer(&RegisterDeviceResponse {
            device_id: request.device_id,
            // As long as a real key, so that requests have the same size.
            api_key: "bare_0000000000000000000000000000000000000000".to_owned(),
            ..RegisterDeviceResponse::default()
        }),
        _ => refusal(),
    }
}

fn answer(message: &impl Message) -> HttpResponse {
    HttpResponse::Ok().content_type("application/proto").body(message.encode_to_vec())
}

fn refusal() -> HttpResponse {
    HttpResponse::build(StatusCode::BAD_REQUEST)
        .content_type("application/json")
        .body(r#"{"code":"invalid_argument","message":"the body is no request with a device_id"}"#)
}
