//! `GET /exports/{export_id}.{extension}`: the file of an export, for whoever has its URL, or a key that may export.
//!
//! Before the file is whole, and after it is gone, there is a sentence in its place that says so.
use http::{HeaderValue, Method, Response, StatusCode};

use super::access::{credential_of, Call};
use super::analytics_service::{AnalyticsService, GET_EXPORT};
use super::artifact_download::{self as download, Asked, File, Refusal};
use super::exports::{file_name, MAX_SHOWN};
use super::gateway::GatewayBody;
use super::wire;
use crate::analytics::export::Form;
use crate::artifacts::{BlobError, UrlRefusal, EXPORT_PATH_PREFIX};
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError, ErrorCode};
use crate::store::{ExportRecord, ExportState};

impl AnalyticsService {
    /// The answer to a request whose path begins with [`EXPORT_PATH_PREFIX`]; `id` is the request's id.
    pub async fn answer_http(&self, asked: Asked<'_>, id: &HeaderValue) -> Response<GatewayBody> {
        let mut call = Call::new(credential_of(asked.headers), asked.peer.ip());
        let mut response = match self.open(&asked, &mut call).await {
            Ok(response) => response,
            Err(refusal) => download::refused(*refusal, &call, id, asked.method == Method::HEAD),
        };
        if let Some(quota) = &call.quota {
            wire::set_limit_headers(response.headers_mut(), quota);
        }
        response
    }

    async fn open(&self, asked: &Asked<'_>, call: &mut Call) -> Result<Response<GatewayBody>, Box<Refusal>> {
        let is_head = download::is_head(asked)?;
        let name = asked.uri.path().strip_prefix(EXPORT_PATH_PREFIX).unwrap_or_default();
        let query = asked.uri.query().unwrap_or_default();
        let mut is_over = false;
        if download::is_signed(query) {
            match self.urls.verify_export(name, query, UnixMillis::now()) {
                Ok(()) => {}
                // Signed for as long as the file is kept: what became of it says more than that the URL is old.
                Err(UrlRefusal::Expired(_)) => is_over = true,
                Err(refusal) => return Err(ApiError::from(refusal).into()),
            }
        } else {
            self.access.authorize(call, GET_EXPORT).await?;
        }
        let (record, _) = self.look(name.split_once('.').map_or(name, |(export_id, _)| export_id)).await?;
        let checksum = match (record.state, record.checksum) {
            (ExportState::Succeeded, Some(checksum)) if !is_over => checksum,
            // An export that waited for its turn is kept longer than was said when it was asked for.
            (ExportState::Succeeded, Some(_)) => return Err(old_url(&record)),
            _ => return Err(not_there(&record)),
        };
        let full_name = file_name(&record);
        if name != full_name {
            let shown = beginning(name, MAX_SHOWN);
            let message = format!("there is no {shown}; the file of {} is {full_name}", record.id);
            return Err(ApiError::not_found(message).into());
        }
        let file = File {
            name: full_name,
            content_type: Form::from_name(&record.form).map_or("application/octet-stream", Form::content_type),
            checksum,
            size_bytes: record.size_bytes,
            expires_at: Some(record.expires_at),
            id: record.id,
        };
        let plan = download::plan(asked, is_head, &file)?;
        let Some(range) = plan.range.clone() else { return Ok(plan.without_body()) };
        let reader = self.blobs.read_export(&file.id, file.checksum, file.size_bytes, range).await;
        let reader = reader.map_err(|error| unreadable(&file.id, error))?;
        plan.answer(reader, &file, &self.feeder)
    }
}

/// Says what became of the file.
fn not_there(record: &ExportRecord) -> Box<Refusal> {
    let id = &record.id;
    let (status, message) = match record.state {
        ExportState::Running => {
            (StatusCode::NOT_FOUND, format!("{id} is still being written; GetExport says how far it is"))
        }
        ExportState::Failed => {
            (StatusCode::NOT_FOUND, format!("{id} failed, and there is no file: {}", record.message))
        }
        ExportState::Succeeded | ExportState::Expired => {
            (StatusCode::GONE, format!("the time of {id} is over, and its file was removed; ask for a new export"))
        }
    };
    Box::new(Refusal { status, error: ApiError::not_found(message), headers: Vec::new() })
}

fn old_url(record: &ExportRecord) -> Box<Refusal> {
    let message = format!("the time of this URL is over; GetExport gives a fresh one of {}", record.id);
    Box::new(Refusal { status: StatusCode::GONE, error: ApiError::not_found(message), headers: Vec::new() })
}

fn unreadable(id: &str, error: BlobError) -> ApiError {
    match error {
        BlobError::Gone(_) | BlobError::Damaged { .. } => {
            let message = format!("the file of {id} is not whole in the artifact store any more; ask for a new export");
            ApiError::new(ErrorCode::DataLoss, message).with_source(error)
        }
        other => other.into(),
    }
}
