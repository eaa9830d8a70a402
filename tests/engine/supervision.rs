//! Deaths: of the engine, of its supervisor, and of an engine that another one follows.
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fleetd::engine::{EngineError, EngineProcess};

use crate::support::{is_alive, kill, options, rows, start, until, Engine, PATIENCE};

const PARENT_FOLDER: &str = "FLEETD_TEST_PARENT_FOLDER";

#[tokio::test]
async fn a_killed_engine_comes_back_on_its_port_with_every_committed_row() {
    let engine = start().await;
    engine.run("CREATE TABLE t (id UInt32, bytes String) ENGINE = MergeTree ORDER BY id").await;
    let url = engine.process.url();
    for round in 0..3_u32 {
        let reply = engine.insert("INSERT INTO t FORMAT RowBinary", "", rows(round * 10_000, 10_000)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let killed = engine.process.pid().expect("a child");
        kill(killed);
        until("another child answers", || {
            engine.process.is_ready() && engine.process.pid().is_some_and(|pid| pid != killed)
        })
        .await;
        assert_eq!(engine.process.restarts(), u64::from(round) + 1);
        assert_eq!(engine.process.url(), url);
        let expected = (round + 1) * 10_000;
        assert_eq!(engine.run("SELECT count(), uniqExact(id) FROM t").await, format!("{expected}\t{expected}"));
    }
}

#[tokio::test]
async fn shutdown_ends_the_child_cleanly_and_the_next_start_has_its_rows() {
    let engine = start().await;
    engine.run("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    engine.run("INSERT INTO t VALUES (1)").await;
    let pid = engine.process.pid().expect("a child");
    let Engine { process, data_dir } = engine;
    let begun = Instant::now();
    process.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "an idle engine ends at once");
    assert!(!is_alive(pid));
    let process = EngineProcess::start(options(data_dir.path())).await.expect("the engine starts again");
    let engine = Engine { process, data_dir };
    assert_eq!(engine.run("SELECT a FROM t").await, "1");
}

#[tokio::test]
async fn shutdown_lets_a_running_statement_finish() {
    let engine = start().await;
    engine.run("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    let request = engine.request("POST", "/", "INSERT INTO t SELECT sleep(1)");
    let mut sender = engine.connect().await;
    let slow = tokio::spawn(async move { sender.send_request(request).await.map(|response| response.status()) });
    engine.eventually("SELECT count() FROM system.processes WHERE query_kind = 'Insert'", "1").await;
    let Engine { process, data_dir } = engine;
    process.shutdown().await;
    assert_eq!(slow.await.expect("no panic").expect("an answer"), 200);
    let process = EngineProcess::start(options(data_dir.path())).await.expect("the engine starts again");
    let engine = Engine { process, data_dir };
    assert_eq!(engine.run("SELECT count() FROM t").await, "1");
}

#[tokio::test]
async fn a_second_engine_on_the_same_folder_says_who_holds_it() {
    let engine = start().await;
    let Err(error) = EngineProcess::start(options(engine.data_dir.path())).await else { panic!("two engines") };
    let holder = format!("process {}", engine.process.pid().expect("a child"));
    assert!(matches!(error, EngineError::DiedAtStart { .. }));
    assert!(error.to_string().contains(&holder), "{error}");
    assert_eq!(engine.run("SELECT 1").await, "1", "the first one is not disturbed");
}

#[tokio::test]
async fn a_start_without_the_library_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = options(folder.path());
    options.library = Some("/nowhere/libchdb.so".into());
    let Err(error) = EngineProcess::start(options).await else { panic!("it cannot start") };
    assert!(error.to_string().contains("make engine"), "{error}");
}

#[tokio::test]
async fn dropping_the_supervision_ends_the_child() {
    let engine = start().await;
    let pid = engine.process.pid().expect("a child");
    drop(engine.process);
    until("the child is gone", || !is_alive(pid)).await;
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
#[ignore = "run by the test below in a process of its own"]
async fn supervise_until_killed() {
    let folder = std::env::var_os(PARENT_FOLDER).expect("started by the test below");
    let process = EngineProcess::start(options(folder.as_ref())).await.expect("the engine starts");
    println!("\nchild {}", process.pid().expect("a child"));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_engine_along_and_the_next_one_starts_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut parent = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "supervision::supervise_until_killed", "--nocapture"])
        .env(PARENT_FOLDER, folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test starts again");
    let output = BufReader::new(parent.stdout.take().expect("a pipe"));
    let child: u32 = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("child ")?.parse().ok())
        .expect("the child's id");
    assert!(is_alive(child));
    parent.kill().expect("killed");
    let killed = Instant::now();
    until("the engine is gone", || !is_alive(child)).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "it took {:?}", killed.elapsed());
    parent.wait().expect("reaped");

    let begun = Instant::now();
    let process = EngineProcess::start(options(folder.path())).await.expect("nothing is in the way");
    assert!(begun.elapsed() < PATIENCE);
    process.shutdown().await;
}
