//! The program as a user runs it: one JSON line on standard output, its exit status, and its two sub-commands.
mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use common::{Action, Fake, State};
use fleetd_loadtest::{Client, Protocol, Target};
use fleetd_proto::v1::{HeartbeatRequest, RegisterDeviceRequest};
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetd-loadtest"));
    command.env_remove("FLEETD_ADMIN_KEY").stdin(Stdio::null());
    command
}

fn run(url: &str, more: &[&str]) -> Output {
    let fixed = ["--url", url, "--key", "admin", "--devices", "20", "--connections", "4", "--duration", "300ms"];
    program().args(fixed).args(more).output().unwrap()
}

fn json_line(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_run_ends_with_one_json_line_of_the_documented_shape() {
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    for protocol in ["connect", "json", "grpc"] {
        let output =
            run(&fake.url(), &["--protocol", protocol, "--streams", "4", "--verify", "--clickhouse-url", &fake.url()]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stderr, b"", "a pipe gets no progress bar");
        let line = json_line(&output);
        for number in [
            "sent",
            "acked",
            "errors",
            "heartbeats_per_second",
            "p50_ms",
            "p99_ms",
            "p99_9_ms",
            "max_ms",
            "duration_seconds",
        ] {
            assert!(line[number].is_number(), "{number} in {line}");
        }
        assert_eq!(line["rejected"], serde_json::json!({}));
        assert_eq!((&line["protocol"], &line["devices"]), (&protocol.into(), &20.into()));
        assert_eq!(line["connections"], 4);
        assert_eq!(line["verified"]["present"], line["acked"]);
        assert_eq!((&line["verified"]["missing"], &line["verified"]["doubled"]), (&0.into(), &0.into()));
        assert!(line["acked"].as_u64().unwrap() > 0);
    }
}

#[test]
fn a_lost_heartbeat_is_exit_status_one_and_named() {
    let state = State::new(|n| if n == 7 { Action::Lose } else { Action::Acknowledge });
    let fake = Fake::start(&state);
    let output = run(&fake.url(), &["--verify", "--clickhouse-url", &fake.url(), "--verify-timeout", "100ms"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json_line(&output)["verified"]["missing"], 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("acknowledged and missing"));
}

#[test]
fn a_server_that_is_not_there_is_exit_status_three_and_a_wrong_flag_two() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&format!("http://{nobody}"), &["--verify", "--clickhouse-url", &format!("http://{nobody}")]);
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(&nobody.to_string()) && message.contains("refused"), "{message}");

    for wrong in [&["--url", "x"][..], &["--protocol", "stream"], &["--devices", "0"], &["--duration", "30"]] {
        let output = program().args(["--key", "k"]).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wrong[0]), "{wrong:?}");
    }
    assert_eq!(program().output().unwrap().status.code(), Some(2), "no key");
}

#[test]
fn the_help_has_examples_and_the_exit_statuses() {
    let output = program().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["Examples:", "Exit status:", "--verify", "compare", "FLEETD_ADMIN_KEY"] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    assert!(!help.contains("bare --listen"), "the bare handler is no command for people");
}

#[test]
fn the_help_of_a_rollout_says_what_happens_and_how_it_ends() {
    let output = program().args(["rollout", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for word in
        ["Examples:", "What happens:", "Output:", "Exit status:", "--fail", "--on-breach", "--upload", "Mishaps"]
    {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}

#[test]
fn a_rollout_without_a_server_is_exit_status_three_and_with_a_wrong_flag_two() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let args = ["rollout", "--key", "k", "--devices", "2", "--url", &format!("http://{nobody}")];
    let output = program().args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty(), "no result, no line");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&nobody.to_string()));

    for wrong in [
        &["--fail", "108%"][..],
        &["--strategy", "bluegreen"],
        &["--devices", "100001"],
        &["--wave", "0"],
        &["--upload", "4GB"],
        &["--max-attempts", "11"],
        &["--keys", "file"],
    ] {
        let output = program().args(["rollout", "--key", "k"]).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wrong[0]), "{wrong:?}");
    }
    let output = program().args(["rollout", "--key", "k", "--strategy", "waves"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "waves without a wave");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--wave"));
    assert_eq!(program().arg("rollout").output().unwrap().status.code(), Some(2), "no key");
}

/// A child that is killed when the test ends, however it ends.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_bare_handler_really_decodes_what_it_acknowledges() {
    let child = program().args(["bare", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Killed(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("bare ready http=").unwrap_or_else(|| panic!("{line:?}"));
    let mut client = Client::new(&Target::parse(url).unwrap(), Protocol::Connect, None).unwrap();
    let device_id = "d".to_owned();
    let register = RegisterDeviceRequest { device_id: device_id.clone(), ..Default::default() };
    assert!(!client.register(&register).await.unwrap().message.api_key.is_empty());
    let heartbeat = HeartbeatRequest { device_id, ..Default::default() };
    assert!(client.heartbeat(&heartbeat).await.unwrap().message.acknowledged);

    // A field that promises more bytes than there are.
    let mut socket = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /fleetd.v1.DeviceService/Heartbeat HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n";
    write!(socket, "{head}content-length: 3\r\n\r\n\x0a\x7fd").unwrap();
    let mut status = String::new();
    BufReader::new(socket).read_line(&mut status).unwrap();
    assert!(status.contains("400"), "{status}");
}

/// Not a test: the process that the next test's comparison takes for the server.
#[test]
#[ignore = "run by a_comparison_measures_each_case_in_turn in a process of its own"]
fn the_fake_server_process() {
    let state = State::new(|_| Action::Acknowledge);
    let fake = Fake::start(&state);
    println!("\nfleetd ready http={} clickhouse={}", fake.url(), fake.url());
    loop {
        std::thread::park();
    }
}

#[test]
#[cfg(unix)]
fn a_comparison_measures_each_case_in_turn() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let server = folder.path().join("fleetd");
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = serve ] && [ -d \"$7\" ] && [ \"$FLEETD_RATE_LIMIT_DEVICE\" -gt 1000000 ] || exit 9\n\
         exec '{}' --ignored --exact the_fake_server_process --nocapture\n",
        this.display()
    );
    std::fs::write(&server, script).unwrap();
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = program()
        .args(["compare", "--rounds", "2", "--duration", "200ms", "--warmup", "50ms", "--devices", "300"])
        .arg("--server")
        .arg(&server)
        .arg("--work-dir")
        .arg(folder.path())
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{messages}");
    let line = json_line(&output);
    let cases: Vec<_> =
        line["rounds"].as_array().unwrap().iter().map(|round| round["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["bare", "connect", "grpc", "bare", "connect", "grpc"]);
    for figure in ["bare", "connect", "grpc", "connect_to_bare", "grpc_to_connect"] {
        assert!(line[figure].as_f64().unwrap() > 0.0, "{figure} in {line}");
    }
    assert!(messages.contains("connect / bare"), "{messages}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the data directory is gone");
}
