//! Whatever dies, and whenever: every acknowledged row is in ClickHouse once.
use std::time::Duration;

use fleetd::telemetry::clickhouse::ClickHouse;

use crate::fixture::{config, eventually, shared_engine, start_engine, Fixture, Random, SOON};
use crate::proxy::{Fault, Proxy};

#[tokio::test]
async fn a_writer_that_dies_at_random_moments_loses_and_doubles_nothing() {
    for seed in 1..=4 {
        die_at_random_moments(seed).await;
    }
}

async fn die_at_random_moments(seed: u64) {
    let upstream = shared_engine().await.url();
    let mut fixture = Fixture::new().await;
    let proxy = Proxy::start(&upstream, Duration::from_millis(300));
    let mut random = Random(seed);
    for round in 0..25 {
        // Some inserts arrive when the writer that sent them is dead.
        let faults = [Fault::None, Fault::LateRequest, Fault::DropResponse, Fault::CutBody];
        proxy.plan([faults[random.below(4) as usize], faults[random.below(4) as usize]]);
        let writer = fixture.start_writer_through(ClickHouse::new(&config(&proxy.url(), &fixture.database)));
        for _ in 0..random.below(4) {
            fixture.append(1 + random.below(2_000)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        tokio::task::spawn_blocking(move || writer.abort()).await.expect("stopped");
        if round % 5 == 4 {
            fixture.reopen_journal();
        }
    }
    eventually("what is late has come", || async { proxy.has_delivered() }).await;
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().rows_doubled, 0, "seed {seed}");
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn an_engine_that_is_killed_at_random_moments_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let engine = start_engine(dir.path()).await;
    let mut fixture = Fixture::on(&engine.url()).await;
    let writer = fixture.start_writer();
    let mut random = Random(2);
    for kill in 1..=8 {
        for _ in 0..random.below(6) {
            fixture.append(1 + random.below(4_000)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(150))).await;
        let pid = engine.pid().expect("it runs");
        // SAFETY: the pid is that of our own child, which its supervisor has not reaped.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
        fixture.append(500).await;
        eventually("the engine is back", || async { engine.restarts() >= kill && engine.is_ready() }).await;
    }
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().rows_doubled, 0);
    writer.shutdown(SOON).await.expect("stops");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_damaged_or_lost_checkpoint_loses_and_doubles_nothing() {
    let mut fixture = Fixture::new().await;
    let path = fixture.dir.path().join("writer.checkpoint");
    fixture.append(500).await;
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    tokio::task::spawn_blocking(move || writer.abort()).await.expect("stopped");
    let whole = std::fs::read(&path).expect("a checkpoint");
    let used = |at: &usize| whole[at / 4096 * 4096..][..4096].iter().rposition(|byte| *byte != 0) >= Some(at % 4096);
    let mut damages: Vec<Vec<u8>> = (0..whole.len())
        .filter(used)
        .step_by(7)
        .flat_map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            [flipped, whole[..at].to_vec()]
        })
        .collect();
    damages.push(Vec::new());
    damages.push(vec![0; whole.len()]);
    damages.push(vec![0xff; whole.len()]);
    assert!(damages.len() > 20, "{}", damages.len());
    for damage in damages {
        std::fs::write(&path, damage).expect("damaged");
        fixture.append(20).await;
        let writer = fixture.start_writer();
        writer.flush(fixture.last_seq, SOON).await.expect("flushed");
        tokio::task::spawn_blocking(move || writer.abort()).await.expect("stopped");
    }
    fixture.assert_exactly_once().await;
}

/// The checkpoint is fsynced and the journal need not be, so a power loss leaves batches on their way whose records are
/// gone: all of the last, the end of the first.
#[tokio::test]
async fn batches_whose_records_a_power_loss_took_stop_no_writer() {
    let mut fixture = Fixture::new().await;
    fixture.append(100).await;
    let mut slot = b"FLTDCKP1".to_vec();
    slot.extend(1_u64.to_le_bytes());
    slot.extend(fixture.journal.id().0.as_bytes());
    slot.extend(0_u64.to_le_bytes());
    slot.extend(2_u32.to_le_bytes());
    for seq in [1_u64, 150, 151, 300] {
        slot.extend(seq.to_le_bytes());
    }
    slot.extend(crc32c::crc32c(&slot).to_le_bytes());
    slot.resize(8192, 0);
    std::fs::write(fixture.dir.path().join("writer.checkpoint"), slot).expect("written");
    // A start after a crash goes on behind the block of numbers that was reserved.
    fixture.reopen_journal_after_crash();
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.append(100).await;
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_checkpoint_of_another_journal_is_not_believed() {
    let mut fixture = Fixture::new().await;
    let mut other = Fixture::new().await;
    other.append(5_000).await;
    let writer = other.start_writer();
    writer.shutdown(SOON).await.expect("stops");
    fixture.append(100).await;
    std::fs::copy(other.dir.path().join("writer.checkpoint"), fixture.dir.path().join("writer.checkpoint"))
        .expect("copied");
    let writer = fixture.start_writer();
    writer.shutdown(SOON).await.expect("stops");
    fixture.assert_exactly_once().await;
}

#[tokio::test]
async fn a_damaged_record_holds_up_neither_the_others_nor_the_shutdown() {
    let mut fixture = Fixture::new().await;
    fixture.append(10).await;
    fixture.append_raw(b"\xffthe record that rots").await;
    let last = fixture.last_seq;
    let segment = fixture.dir.path().join("journal");
    fixture.close_journal().await;
    for entry in std::fs::read_dir(segment).expect("a folder") {
        let path = entry.expect("an entry").path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(7).position(|window| window == b"record ") {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("damaged");
        }
    }
    fixture.reopen_journal();
    let writer = fixture.start_writer();
    writer.shutdown(SOON).await.expect("stops");
    assert_eq!(writer.status().records_set_aside, 0, "seq {last} was not damaged");
    fixture.assert_exactly_once().await;
    fixture.append(10).await;
    let writer = fixture.start_writer();
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    writer.shutdown(SOON).await.expect("stops");
    assert!(!writer.status().is_running);
}
