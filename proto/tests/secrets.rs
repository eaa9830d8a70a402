//! What no log may show does not show in `Debug`, and still goes over the wire.

use fleetd_proto::json;
use fleetd_proto::v1::*;

const SECRET: &str = "hunter2";

#[test]
fn debug_shows_no_secret_and_json_carries_it() {
    fn check<T: std::fmt::Debug + serde::Serialize>(message: T, beside: &str) {
        let shown = format!("{message:?}");
        assert!(!shown.contains(SECRET) && shown.contains("[redacted]") && shown.contains(beside), "{shown}");
        let written = String::from_utf8(json::to_vec(&message).expect("json")).expect("utf-8");
        assert!(written.contains(SECRET), "{written}");
    }
    let headers = || [("X-Webhook-Secret".to_owned(), SECRET.to_owned())].into();
    check(
        RegisterDeviceResponse { device_id: "rpi-001".into(), api_key: SECRET.into(), ..Default::default() },
        "rpi-001",
    );
    check(CreateApiKeyResponse { api_key: SECRET.into(), ..Default::default() }, "key: None");
    check(CreateWebhookResponse { signing_secret: SECRET.into(), ..Default::default() }, "webhook: None");
    check(CreateWebhookRequest { headers: headers(), url: "https://a".into(), ..Default::default() }, "https://a");
    check(Webhook { headers: headers(), id: "hook-1".into(), ..Default::default() }, "hook-1");
    check(UpdateInfo { download_url: SECRET.into(), version: "2.0.0".into(), ..Default::default() }, "2.0.0");
    check(ExportDataResponse { export_url: SECRET.into(), export_id: "e-1".into(), ..Default::default() }, "e-1");
    check(GetExportResponse { export_url: SECRET.into(), export_id: "e-1".into(), ..Default::default() }, "e-1");
}

#[test]
fn a_message_around_one_with_secrets_shows_none_either() {
    let offer = UpdateInfo { download_url: SECRET.into(), ..Default::default() };
    let reply = HeartbeatResponse { pending_update: Some(offer), ..Default::default() };
    assert!(!format!("{reply:?}").contains(SECRET));
}
