//! A disk that is full takes no upload, keeps room for heartbeats, and takes uploads again when there is room.
use crate::support::clickhouse::Engine;
use crate::support::client::Client;
use crate::support::disk::SmallDisk;
use crate::support::wire::{http1, Ask};
use crate::support::{wait_until, Options, Server};
use crate::transfer::{named, upload, uploaded, Answer, Via};
use crate::{artifacts, content};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

#[track_caller]
fn is_refused_for_room(answer: &Answer) {
    answer.is_refused("UNAVAILABLE", &["the disk is full"]);
    assert_eq!(answer.retry_after.as_deref(), Some("30"), "{answer:?}");
}

#[test]
fn a_full_disk_refuses_uploads_before_heartbeats_and_recovers() {
    let Some(mut disk) = SmallDisk::new(48) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    let options = Options::default().unlimited().env("FLEETD_JOURNAL_SEGMENT_MB", "1");
    let server = Server::with(options.data_dir(disk.path()).clickhouse(engine.address()));
    let key = server.register("rpi-001");
    let kept = uploaded(&server, "kept.bin", &content(1, 100_000));

    // Larger than the disk, said before and not said.
    let large = content(2, 60 << 20);
    for size_bytes in [large.len() as i64, 0] {
        let metadata = fleetd_proto::v1::BinaryMetadata { size_bytes, ..named("large.bin") };
        is_refused_for_room(&upload(&server, Via::Grpc, metadata, &large, 1 << 20));
        let cleaned = wait_until(SOON, || artifacts(&server).len() == 1);
        assert!(cleaned, "left behind: {:?}", artifacts(&server));
        let heartbeat = Client::Json1.call("DeviceService/Heartbeat", Some(&key), br#"{"device_id":"rpi-001"}"#);
        assert_eq!(http1(server.http(), &heartbeat).status, 200, "uploads leave room for heartbeats");
    }

    disk.fill();
    is_refused_for_room(&upload(&server, Via::Connect1, named("small.bin"), b"x", 1));
    let get = Ask::get(format!("/artifacts/{kept}")).header("x-api-key", crate::support::ADMIN_KEY);
    assert_eq!(http1(server.http(), &get).status, 200, "what is there can be downloaded");
    disk.empty();
    uploaded(&server, "small.bin", b"x");
    assert_eq!(artifacts(&server).len(), 2);
}
