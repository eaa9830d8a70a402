//! The README's first three commands, run as a newcomer types them; only the addresses are replaced, since a test's server
//! is on a free port. Of its questions to the telemetry the messages are sent, since not everybody has grpcurl.
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::client::Client;
use support::wire::http1;
use support::{wait_until, Options, Server, ADMIN_KEY};

/// The shell blocks of the README, in order.
fn commands() -> Vec<String> {
    let readme = include_str!("../README.md");
    readme.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("\n```")).map(|(code, _)| code.into()).collect()
}

fn run(command: &str, folder: &Path) -> String {
    let output = Command::new("sh").args(["-c", command]).current_dir(folder).output().expect("a shell");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}\nprinted\n{stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn a_first_device_takes_three_commands() {
    // An empty variable counts as none: the server makes its key file, as it does for a newcomer.
    let server = Server::with(Options::default().env("FLEETD_ADMIN_KEY", ""));
    let folder = tempfile::tempdir().expect("a folder to type in");
    std::os::unix::fs::symlink(server.data_dir(), folder.path().join("fleetd-data")).expect("the data directory");
    let here = |command: &String| {
        command
            .replace("127.0.0.1:8080", &server.http().to_string())
            .replace("127.0.0.1:8123", &server.clickhouse().to_string())
    };
    let commands: Vec<String> = commands().iter().map(here).collect();
    let [register, heartbeat, select] = commands.as_slice() else {
        panic!("the README has {} shell blocks, not three", commands.len());
    };
    let registered = run(register, folder.path());
    assert!(registered.contains(r#""deviceId":"rpi-001","apiKey":"fdk_"#), "{registered}");
    let acknowledged = run(heartbeat, folder.path());
    assert!(acknowledged.contains(r#""acknowledged":true"#), "{acknowledged}");
    let mut rows = String::new();
    let arrived = wait_until(Duration::from_secs(20), || {
        rows = run(select, folder.path());
        rows.contains("rpi-001")
    });
    assert!(arrived, "no row in ClickHouse:\n{rows}\n{}", server.log());
    assert!(rows.contains("25.5"), "{rows}");
}

#[test]
fn the_questions_to_the_telemetry_are_answered() {
    let server = Server::with(Options::default().unlimited());
    let readme = include_str!("../README.md");
    let mut asked = Vec::new();
    for line in readme.lines().filter(|line| line.contains("fleetd.v1.AnalyticsService/")) {
        let (_, rpc) = line.rsplit_once('/').expect("an RPC");
        let message = line.split_once("-d '").and_then(|(_, rest)| rest.split_once('\'')).expect("a message").0;
        let ask = Client::Json1.call(&format!("AnalyticsService/{rpc}"), Some(ADMIN_KEY), message.as_bytes());
        let reply = http1(server.http(), &ask);
        assert_eq!(reply.status, 200, "{line}: {}", reply.text());
        asked.push(rpc);
    }
    assert_eq!(asked, ["GetMetrics", "GetDeviceHealth", "ExportData", "GetExport"]);
}
