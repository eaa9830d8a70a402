//! The README's first three commands, run as a newcomer types them. Only the addresses are replaced, since a test's
//! server is on a free port.
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{wait_until, Options, Server};

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
