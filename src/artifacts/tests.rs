//! The store by itself: in a folder, and in memory, which behaves as a bucket does.
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::memory::InMemory;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;

async fn folder() -> (TempDir, BlobStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&StoreTarget::Folder(folder.path().join("artifacts"))).await.unwrap();
    (folder, store)
}

fn bucket() -> BlobStore {
    BlobStore { store: Arc::new(InMemory::new()), folder: None, part_bytes: 8 << 20 }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * place / 7) as u8).collect()
}

fn checksum(bytes: &[u8]) -> Checksum {
    Checksum::from_bytes(Sha256::digest(bytes).into())
}

async fn keep(store: &BlobStore, bytes: &[u8], chunk: usize) -> Kept {
    let mut upload = store.begin(Some(bytes.len() as u64)).await.unwrap();
    for chunk in bytes.chunks(chunk) {
        upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    upload.finish(Some(checksum(bytes))).await.unwrap()
}

/// Names of all objects, also of halves of them.
async fn objects(store: &BlobStore) -> Vec<String> {
    let Some(folder) = &store.folder else {
        return store.store.list(None).map(|object| object.unwrap().location.to_string()).collect().await;
    };
    let mut names = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                names.push(entry.display().to_string());
            }
        }
    }
    names
}

/// What is dropped is removed by a task of its own.
async fn becomes_empty(store: &BlobStore) {
    let started = Instant::now();
    while !objects(store).await.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10), "left behind: {:?}", objects(store).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn read(store: &BlobStore, bytes: &[u8], range: std::ops::Range<u64>, piece: usize) -> Vec<u8> {
    let mut reader = store.read(checksum(bytes), bytes.len() as u64, range).await.unwrap();
    let mut read = Vec::new();
    while let Some(piece) = reader.next(piece).await.unwrap() {
        read.extend_from_slice(&piece);
    }
    read
}

#[tokio::test]
async fn what_was_published_is_read_back_in_any_pieces() {
    let (_dir, folder) = folder().await;
    for store in [folder, bucket()] {
        let bytes = content(3_000_001);
        for chunk in [1 << 20, 70_000, 999] {
            keep(&store, &bytes, chunk).await.publish().await.unwrap();
        }
        assert_eq!(objects(&store).await.len(), 1, "the same bytes are one object");
        for (range, piece) in [(0..3_000_001, 65_536), (1..3_000_000, 1 << 22), (2_999_999..3_000_001, 1), (5..5, 10)] {
            let expected = &bytes[range.start as usize..range.end as usize];
            assert!(read(&store, &bytes, range.clone(), piece).await == expected, "{range:?}");
        }
    }
}

#[tokio::test]
async fn what_is_given_up_at_any_point_leaves_nothing() {
    let (_dir, folder) = folder().await;
    for store in [folder, bucket()] {
        let bytes = content(2 << 20);
        let mut upload = store.begin(None).await.unwrap();
        upload.write(bytes.clone().into()).await.unwrap();
        drop(upload);
        becomes_empty(&store).await;

        let mut upload = store.begin(None).await.unwrap();
        upload.write(bytes.clone().into()).await.unwrap();
        let error = upload.finish(Some(checksum(b"other"))).await.err().unwrap();
        assert!(matches!(error, BlobError::WrongChecksum { .. }), "{error}");
        becomes_empty(&store).await;

        let mut upload = store.begin(Some(10)).await.unwrap();
        let error = upload.write(bytes.clone().into()).await.unwrap_err();
        assert!(matches!(error, BlobError::WrongSize { expected: 10, .. }), "{error}");
        drop(upload);

        drop(keep(&store, &bytes, 1 << 20).await);
        becomes_empty(&store).await;
    }
}

#[tokio::test]
async fn halves_that_the_store_forgot_are_removed_and_no_others() {
    let (_dir, store) = folder().await;
    let upload = |bytes: usize| {
        let store = store.clone();
        async move {
            let mut upload = store.begin(None).await.unwrap();
            upload.write(content(bytes).into()).await.unwrap();
            upload
        }
    };
    let (failed, other) = (upload(1 << 20).await, upload(1 << 20).await);
    store.remove_halves(failed.temporary());
    assert_eq!(objects(&store).await.len(), 1);
    other.finish(None).await.unwrap().publish().await.unwrap();
    std::mem::forget(failed);
}

#[tokio::test]
async fn a_start_removes_halves_and_what_nobody_knows() {
    let (dir, store) = folder().await;
    let (known, unknown) = (content(10), content(11));
    keep(&store, &known, 10).await.publish().await.unwrap();
    keep(&store, &unknown, 10).await.publish().await.unwrap();
    let kept = keep(&store, &content(12), 10).await;
    let mut half = store.begin(None).await.unwrap();
    half.write(content(2 << 20).into()).await.unwrap();
    assert_eq!(objects(&store).await.len(), 4);
    // As a crash does: nobody cleans up.
    std::mem::forget((kept, half));

    let store = BlobStore::open(&StoreTarget::Folder(dir.path().join("artifacts"))).await.unwrap();
    assert_eq!(objects(&store).await.len(), 2);
    let is_known = checksum(&known);
    assert_eq!(store.remove_unknown(|checksum| *checksum == is_known).await.unwrap(), 1);
    assert_eq!(read(&store, &known, 0..10, 100).await, known);
    let error = store.read(checksum(&unknown), 11, 0..11).await.err().unwrap();
    assert!(matches!(error, BlobError::Gone(_)), "{error}");
}

async fn feeder_of(bytes: &[u8]) -> (BlobStore, Feeder, watch::Sender<bool>) {
    let store = bucket();
    keep(&store, bytes, 1 << 20).await.publish().await.unwrap();
    let (stop, stopping) = watch::channel(false);
    (store, Feeder::new(stopping, Arc::default()), stop)
}

#[tokio::test]
async fn downloads_share_a_budget_and_give_it_back() {
    let bytes = content(1 << 20);
    let (store, feeder, _stop) = feeder_of(&bytes).await;
    let reader = || async { store.read(checksum(&bytes), 1 << 20, 0..1 << 20).await.unwrap() };
    let mut feeds = Vec::new();
    // 256 MiB in downloads with three pieces of 4 MiB.
    while let Ok(feed) = feeder.start(reader().await, 4 << 20) {
        feeds.push(feed);
    }
    assert_eq!(feeds.len(), 21);
    let pieces: Vec<_> = feeds.pop().unwrap().map(|piece| piece.unwrap()).collect().await;
    assert!(pieces.concat() == bytes);
    let started = Instant::now();
    while feeder.start(reader().await, 4 << 20).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "the budget never comes back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stop_ends_a_download_that_stands_still() {
    let bytes = content(1 << 20);
    let (store, feeder, stop) = feeder_of(&bytes).await;
    let reader = store.read(checksum(&bytes), 1 << 20, 0..1 << 20).await.unwrap();
    let mut feed = feeder.start(reader, 4_096).unwrap();
    assert_eq!(feed.next().await.unwrap().unwrap(), &bytes[..4_096]);
    stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let rest: Vec<_> = feed.collect().await;
    assert!(rest.len() < 5 && rest.last().unwrap().is_err(), "{} pieces", rest.len());
}
