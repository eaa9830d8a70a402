//! The JSON examples of the API reference, verbatim in `reference/`, read into their messages with all their values.

use std::collections::BTreeMap;

use fleetd_proto::json;
use fleetd_proto::v1::*;
use fleetd_proto::{Duration, FieldMask, Timestamp};
use serde::de::DeserializeOwned;
use serde::Serialize;

/// Reads an example, checks that writing it in the canonical form and reading that again gives the same, and answers it.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(example: &str) -> T {
    let message: T = json::from_slice(example.as_bytes()).expect("the example parses");
    let written = json::to_vec(&message).expect("it can be written");
    assert_eq!(json::from_slice::<T>(&written).expect("what was written parses"), message);
    message
}

fn time(text: &str) -> Option<Timestamp> {
    Some(text.parse().expect("a time"))
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn register_device() {
    let request: RegisterDeviceRequest = read(include_str!("reference/register_device.json"));
    let system_info =
        SystemInfo { os: "Linux".into(), arch: "arm64".into(), cpu_cores: 4, memory_mb: 4096, ..Default::default() };
    let expected = RegisterDeviceRequest {
        device_id: "rpi-001".into(),
        device_name: "Raspberry Pi 001".into(),
        device_type: "raspberry-pi".into(),
        version: "1.0.0".into(),
        system_info: Some(system_info),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn list_devices() {
    let request: ListDevicesRequest = read(include_str!("reference/list_devices.json"));
    let expected = ListDevicesRequest {
        page_size: 20,
        filter: "status:online".into(),
        order_by: "last_seen DESC".into(),
        ..Default::default()
    };
    assert_eq!(request, expected);
    let first: ListDevicesRequest = read(include_str!("reference/list_devices_first_page.json"));
    assert_eq!(first, ListDevicesRequest { page_size: 20, ..Default::default() });
    let next: ListDevicesRequest = read(include_str!("reference/list_devices_next_page.json"));
    assert_eq!((next.page_size, next.page_token.as_str()), (20, "next-token-from-response"));
}

#[test]
fn get_device() {
    let request: GetDeviceRequest = read(include_str!("reference/get_device.json"));
    let expected = GetDeviceRequest { device_id: "rpi-001".into(), include_metrics: true, include_health: true };
    assert_eq!(request, expected);
}

#[test]
fn update_device() {
    let request: UpdateDeviceRequest = read(include_str!("reference/update_device.json"));
    let expected = UpdateDeviceRequest {
        device_id: "rpi-001".into(),
        update_mask: Some(FieldMask { paths: texts(["name", "metadata"]) }),
        device: Some(Device {
            name: "Raspberry Pi Production".into(),
            metadata: BTreeMap::from([("location".into(), "datacenter-1".into())]),
            ..Default::default()
        }),
    };
    assert_eq!(request, expected);
}

#[test]
fn update_device_with_a_nested_mask_and_an_enum() {
    let request: UpdateDeviceRequest = read(include_str!("reference/update_device_mask.json"));
    let mask = request.update_mask.expect("a mask");
    assert_eq!(mask.paths, ["name", "metadata.location", "status"]);
    let device = request.device.expect("a device");
    assert_eq!(device.status(), device_status::State::Maintenance);
    assert_eq!((device.name.as_str(), device.metadata["location"].as_str()), ("New Name", "Building A"));
}

#[test]
fn delete_device() {
    let request: DeleteDeviceRequest = read(include_str!("reference/delete_device.json"));
    assert_eq!(request, DeleteDeviceRequest { device_id: "rpi-001".into(), force: false });
}

#[test]
fn heartbeat() {
    let request: HeartbeatRequest = read(include_str!("reference/heartbeat.json"));
    let expected = HeartbeatRequest {
        device_id: "rpi-001".into(),
        status: Some(DeviceStatus {
            state: device_status::State::Online.into(),
            uptime_seconds: 3600,
            last_boot: time("2024-01-01T12:00:00Z"),
            ..Default::default()
        }),
        stats: Some(SystemStats { cpu_percent: 25.5, memory_used_mb: 1024, disk_used_gb: 10.5, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn create_update() {
    let request: CreateUpdateRequest = read(include_str!("reference/create_update.json"));
    let expected = CreateUpdateRequest {
        name: "Firmware Update v2.0".into(),
        version: "2.0.0".into(),
        description: "Security patches and performance improvements".into(),
        artifacts: vec![Artifact {
            platform: "raspberry-pi".into(),
            url: "https://updates.fleetd.io/firmware-2.0.0-rpi.tar.gz".into(),
            checksum: "sha256:abc123...".into(),
            size_bytes: 104_857_600,
            ..Default::default()
        }],
        strategy: Some(UpdateStrategy {
            r#type: update_strategy::Type::Rolling.into(),
            max_parallel: Some(10),
            max_failure_percentage: Some(5.0),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn deploy_update() {
    let request: DeployUpdateRequest = read(include_str!("reference/deploy_update.json"));
    let expected = DeployUpdateRequest {
        update_id: "update-001".into(),
        device_filter: "type:raspberry-pi AND status:online".into(),
        config: Some(DeploymentConfig {
            strategy: update_strategy::Type::Canary.into(),
            canary_percentage: Some(10.0),
            validation_duration: Some(Duration { seconds: 3600, nanos: 0 }),
            auto_promote: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn get_deployment_status() {
    let request: GetDeploymentStatusRequest = read(include_str!("reference/get_deployment_status.json"));
    let expected = GetDeploymentStatusRequest {
        deployment_id: "deploy-001".into(),
        include_device_details: true,
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn rollback_deployment() {
    let request: RollbackDeploymentRequest = read(include_str!("reference/rollback_deployment.json"));
    let expected = RollbackDeploymentRequest {
        deployment_id: "deploy-001".into(),
        reason: "High error rate detected".into(),
        force: false,
    };
    assert_eq!(request, expected);
}

#[test]
fn get_metrics() {
    let request: GetMetricsRequest = read(include_str!("reference/get_metrics.json"));
    let expected = GetMetricsRequest {
        start_time: time("2024-01-01T00:00:00Z"),
        end_time: time("2024-01-02T00:00:00Z"),
        metric_names: texts(["cpu_usage", "memory_usage", "device_online_count"]),
        aggregation: "AVG".into(),
        interval: Some(Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn get_device_health() {
    let request: GetDeviceHealthRequest = read(include_str!("reference/get_device_health.json"));
    let expected = GetDeviceHealthRequest {
        device_filter: "type:raspberry-pi".into(),
        check_type: HealthCheckType::Comprehensive.into(),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn export_data() {
    let request: ExportDataRequest = read(include_str!("reference/export_data.json"));
    let expected = ExportDataRequest {
        format: ExportFormat::Csv.into(),
        data_type: DataType::DeviceMetrics.into(),
        start_time: time("2024-01-01T00:00:00Z"),
        end_time: time("2024-01-31T23:59:59Z"),
        fields: texts(["device_id", "timestamp", "cpu_usage", "memory_usage"]),
        ..Default::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn create_webhook() {
    let request: CreateWebhookRequest = read(include_str!("reference/create_webhook.json"));
    let expected = CreateWebhookRequest {
        url: "https://your-server.com/webhook".into(),
        events: texts(["device.offline", "deployment.failed", "update.available"]),
        headers: BTreeMap::from([("X-Webhook-Secret".into(), "your-secret".into())]),
        retry: Some(WebhookRetry { max_attempts: 3, backoff: "exponential".into() }),
        ..Default::default()
    };
    assert_eq!(request, expected);
}
