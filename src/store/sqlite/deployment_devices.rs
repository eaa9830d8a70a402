//! The devices of deployments: `deployment_devices`, the order of their ids, their counts and their attempts.
//!
//! Nothing here asks whether a deployment is complete: counts are written with its last device, and every way to a
//! device but its key goes by them.
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::commands::time;
use super::connection;
use super::deployments::{id_of, misuse, Misuse};
use super::devices::{device_id, unsigned};
use super::error::classify;
use super::job::JobError;
use crate::ids::DeviceId;
use crate::store::{AttemptRecord, DeploymentDevice, DeploymentDeviceQuery, Paged, StoreError, UnixMillis};

/// The columns that [`to_device`] reads, in its order.
macro_rules! select_devices {
    ($rest:literal) => {
        concat!(
            "SELECT key, device_id, state, record, from_version, message, offered_at, updated_at \
             FROM deployment_devices ",
            $rest
        )
    };
}

/// An entry of `deployment_devices_by_state`; ordered as that table is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub state: i32,
    pub device_id: DeviceId,
    pub place: u32,
}

/// By how much the number of devices in a state changes.
pub type Counts = BTreeMap<i32, i64>;

/// Where a device is kept. 2^31 deployments of 2^32 devices have keys.
fn key(deployment: i64, place: u32) -> i64 {
    (deployment << 32) | i64::from(place)
}

/// About what a device holds of a queued write.
pub fn bytes(device: &DeploymentDevice) -> usize {
    size_of::<DeploymentDevice>() + device.record.len() + device.from_version.len() + device.message.len()
}

/// Adds devices, without their entries and counts.
pub fn insert(connection: &Connection, deployment: i64, devices: &[DeploymentDevice]) -> Result<(), JobError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO deployment_devices \
         (key, device_id, state, record, from_version, message, offered_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for device in devices {
        insert.execute(params![
            key(deployment, device.place),
            device.device_id.as_str(),
            device.state,
            &device.record[..],
            device.from_version,
            device.message,
            device.offered_at.map(UnixMillis::as_millis),
            device.updated_at.as_millis(),
        ])?;
    }
    Ok(())
}

pub fn insert_entries(connection: &Connection, deployment: i64, entries: &[Entry]) -> Result<(), JobError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO deployment_devices_by_state (deployment_pk, state, device_id, place) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for entry in entries {
        insert.execute(params![deployment, entry.state, entry.device_id.as_str(), entry.place])?;
    }
    Ok(())
}

pub fn add_counts(connection: &Connection, deployment: i64, counts: &Counts) -> Result<(), JobError> {
    let mut update = connection.prepare_cached(
        "UPDATE deployment_counts SET devices = devices + ?3 WHERE deployment_pk = ?1 AND state = ?2",
    )?;
    let mut insert = connection
        .prepare_cached("INSERT INTO deployment_counts (deployment_pk, state, devices) VALUES (?1, ?2, ?3)")?;
    for (state, change) in counts.iter().filter(|(_, change)| **change != 0) {
        if update.execute(params![deployment, state, change])? == 0 {
            insert.execute(params![deployment, state, change])?;
        }
    }
    Ok(())
}

/// Replaces devices by their places, and adds those whose places are new.
pub fn save(connection: &Connection, deployment: i64, devices: &[DeploymentDevice]) -> Result<(), JobError> {
    let mut find = connection.prepare_cached("SELECT state, device_id FROM deployment_devices WHERE key = ?1")?;
    let mut update = connection.prepare_cached(
        "UPDATE deployment_devices SET device_id = ?2, state = ?3, record = ?4, from_version = ?5, message = ?6, \
         offered_at = ?7, updated_at = ?8 WHERE key = ?1",
    )?;
    let (mut counts, mut joiners) = (Counts::new(), Vec::new());
    for device in devices {
        let key = key(deployment, device.place);
        let found = find
            .query_row([key], |row| {
                let before = row.get_ref(1)?.as_str()?;
                // Its text only when it is another one, which a deployment never asks for.
                let other = (before != device.device_id.as_str()).then(|| before.to_owned());
                Ok((row.get::<_, i32>(0)?, other))
            })
            .optional()?;
        let Some((state, other)) = found else {
            joiners.push(device);
            continue;
        };
        update.execute(params![
            key,
            device.device_id.as_str(),
            device.state,
            &device.record[..],
            device.from_version,
            device.message,
            device.offered_at.map(UnixMillis::as_millis),
            device.updated_at.as_millis(),
        ])?;
        if state != device.state || other.is_some() {
            let before = other.as_deref().unwrap_or(device.device_id.as_str());
            move_entry(connection, deployment, (state, before), device)?;
            *counts.entry(state).or_default() -= 1;
            *counts.entry(device.state).or_default() += 1;
        }
    }
    add_counts(connection, deployment, &counts)?;
    joiners.into_iter().try_for_each(|device| add(connection, deployment, device))
}

/// Adds a device whose place was free before this step. The counts must be true by now: whoever is there is found by
/// them.
fn add(connection: &Connection, deployment: i64, device: &DeploymentDevice) -> Result<(), JobError> {
    match place_of(connection, deployment, &device.device_id)? {
        None => {}
        // The step named it before: the last one counts.
        Some(place) if place == device.place => {
            return save(connection, deployment, std::slice::from_ref(device));
        }
        Some(_) => return Err(misuse(Misuse::TwoPlaces(device.device_id.clone()))),
    }
    insert(connection, deployment, std::slice::from_ref(device))?;
    let entry = Entry { state: device.state, device_id: device.device_id.clone(), place: device.place };
    insert_entries(connection, deployment, &[entry])?;
    add_counts(connection, deployment, &Counts::from([(device.state, 1)]))
}

fn move_entry(
    connection: &Connection,
    deployment: i64,
    (state, device_id): (i32, &str),
    device: &DeploymentDevice,
) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "UPDATE deployment_devices_by_state SET state = ?4, device_id = ?5 \
             WHERE deployment_pk = ?1 AND state = ?2 AND device_id = ?3",
        )?
        .execute(params![deployment, state, device_id, device.state, device.device_id.as_str()])?;
    Ok(())
}

/// Keeps how attempts ended; `changed` are devices of the same step, whose places need no look-up.
pub fn save_attempts(
    connection: &Connection,
    deployment: i64,
    attempts: &[AttemptRecord],
    changed: &[DeploymentDevice],
) -> Result<(), JobError> {
    if attempts.is_empty() {
        return Ok(());
    }
    let places: HashMap<&str, u32> = changed.iter().map(|device| (device.device_id.as_str(), device.place)).collect();
    let mut insert = connection.prepare_cached(
        "INSERT OR REPLACE INTO deployment_attempts \
         (device_key, attempt, state, reason_code, message, offered_at, ended_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for attempt in attempts {
        let place = match places.get(attempt.device_id.as_str()) {
            Some(place) => *place,
            None => place_of(connection, deployment, &attempt.device_id)?
                .ok_or_else(|| misuse(Misuse::NoDevice(id_of(deployment), attempt.device_id.clone())))?,
        };
        insert.execute(params![
            key(deployment, place),
            attempt.attempt,
            attempt.state,
            attempt.reason_code,
            attempt.message,
            attempt.offered_at.map(UnixMillis::as_millis),
            attempt.ended_at.as_millis(),
        ])?;
    }
    Ok(())
}

fn place_of(connection: &Connection, deployment: i64, device: &DeviceId) -> Result<Option<u32>, JobError> {
    // CROSS JOIN keeps the order: a handful of states, and one probe for each.
    let mut statement = connection.prepare_cached(
        "SELECT place FROM deployment_counts c CROSS JOIN deployment_devices_by_state e \
         ON e.deployment_pk = c.deployment_pk AND e.state = c.state \
         WHERE c.deployment_pk = ?1 AND c.devices > 0 AND e.device_id = ?2",
    )?;
    Ok(statement.query_row(params![deployment, device.as_str()], |row| row.get(0)).optional()?)
}

/// The newest deployment with the device. Asks one deployment after the other, from the newest: a few probes each,
/// where an index with ids first would cost every deployment as much space again, and a random page for each device.
pub fn last_deployment(connection: &Connection, device: &DeviceId) -> Result<Option<i64>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT c.deployment_pk FROM deployment_counts c CROSS JOIN deployment_devices_by_state e \
         ON e.deployment_pk = c.deployment_pk AND e.state = c.state \
         WHERE c.devices > 0 AND e.device_id = ?1 ORDER BY c.deployment_pk DESC LIMIT 1",
    )?;
    Ok(statement.query_row([device.as_str()], |row| row.get(0)).optional()?)
}

pub fn read(connection: &Connection, deployment: i64, device: &DeviceId) -> Result<Option<DeploymentDevice>, JobError> {
    let snapshot = connection.unchecked_transaction()?;
    let Some(place) = place_of(&snapshot, deployment, device)? else { return Ok(None) };
    let mut statement = snapshot.prepare_cached(select_devices!("WHERE key = ?1"))?;
    Ok(statement.query_row([key(deployment, place)], to_device).optional()?)
}

pub fn attempts(connection: &Connection, deployment: i64, device: &DeviceId) -> Result<Vec<AttemptRecord>, JobError> {
    let snapshot = connection.unchecked_transaction()?;
    let Some(place) = place_of(&snapshot, deployment, device)? else { return Ok(Vec::new()) };
    let mut statement = snapshot.prepare_cached(
        "SELECT attempt, state, reason_code, message, offered_at, ended_at FROM deployment_attempts \
         WHERE device_key = ?1 ORDER BY attempt DESC",
    )?;
    let attempts = statement.query_map([key(deployment, place)], |row| {
        Ok(AttemptRecord {
            device_id: device.clone(),
            attempt: row.get(0)?,
            state: row.get(1)?,
            reason_code: row.get(2)?,
            message: row.get(3)?,
            offered_at: row.get::<_, Option<i64>>(4)?.map(time),
            ended_at: time(row.get(5)?),
        })
    })?;
    Ok(attempts.collect::<Result<_, _>>()?)
}

/// Merges the first `limit` of each state, since within one state devices are in order already.
pub fn list(
    connection: &Connection,
    deployment: i64,
    query: &DeploymentDeviceQuery,
) -> Result<Paged<DeploymentDevice>, JobError> {
    let snapshot = connection.unchecked_transaction()?;
    let mut counts = snapshot
        .prepare_cached("SELECT state, devices FROM deployment_counts WHERE deployment_pk = ?1 AND devices > 0")?;
    let mut counts = counts
        .query_map([deployment], |row| Ok((row.get(0)?, unsigned(row, 1)?)))?
        .collect::<Result<Vec<(i32, u64)>, _>>()?;
    counts.retain(|(state, _)| query.states.is_empty() || query.states.contains(state));
    let total = counts.iter().map(|(_, devices)| devices).sum();

    // No id is empty, so the empty text comes before all of them.
    let after = query.after.as_deref().unwrap_or_default();
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let mut entries = snapshot.prepare_cached(
        "SELECT device_id, place FROM deployment_devices_by_state \
         WHERE deployment_pk = ?1 AND state = ?2 AND device_id > ?3 ORDER BY device_id LIMIT ?4",
    )?;
    let mut page: Vec<(String, u32)> = Vec::new();
    for (state, _) in counts {
        for entry in
            entries.query_map(params![deployment, state, after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
        {
            page.push(entry?);
        }
    }
    page.sort_unstable();
    page.truncate(query.limit);

    let mut statement = snapshot.prepare_cached(select_devices!("WHERE key = ?1"))?;
    let items = page
        .iter()
        .map(|(_, place)| statement.query_row([key(deployment, *place)], to_device))
        .collect::<Result<_, _>>()?;
    Ok(Paged { items, total })
}

/// Shows the devices of a complete deployment on the calling thread; returns how many.
pub fn for_each(path: &Path, deployment: i64, each: &mut dyn FnMut(DeploymentDevice)) -> Result<u64, StoreError> {
    let connection = connection::open_reader(path)?;
    let failed = |source| classify("read the devices of a deployment", source);
    let mut statement = connection
        .prepare(select_devices!(
            "WHERE key BETWEEN ?1 AND ?2 AND EXISTS (SELECT 1 FROM deployment_heads WHERE deployment_pk = ?3) \
             ORDER BY key"
        ))
        .map_err(failed)?;
    let range = [key(deployment, 0), key(deployment, u32::MAX), deployment];
    let mut rows = statement.query(range).map_err(failed)?;
    let mut count = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        each(to_device(row).map_err(failed)?);
        count += 1;
    }
    Ok(count)
}

/// Deletes up to `limit` rows of a deployment that is not complete, which has neither counts nor attempts; returns
/// how many.
pub fn remove_some(connection: &Connection, deployment: i64, limit: usize) -> rusqlite::Result<usize> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let devices = connection.execute(
        "DELETE FROM deployment_devices WHERE key IN \
         (SELECT key FROM deployment_devices WHERE key BETWEEN ?1 AND ?2 LIMIT ?3)",
        [key(deployment, 0), key(deployment, u32::MAX), limit],
    )?;
    let entries = connection.execute(
        "DELETE FROM deployment_devices_by_state WHERE deployment_pk = ?1 AND (state, device_id) IN \
         (SELECT state, device_id FROM deployment_devices_by_state WHERE deployment_pk = ?1 LIMIT ?2)",
        [deployment, limit],
    )?;
    Ok(devices + entries)
}

fn to_device(row: &Row<'_>) -> rusqlite::Result<DeploymentDevice> {
    let key: i64 = row.get(0)?;
    Ok(DeploymentDevice {
        // The low half of the key.
        place: key as u32,
        device_id: device_id(row.get_ref(1)?.as_str()?)?,
        state: row.get(2)?,
        record: Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?),
        from_version: row.get(4)?,
        message: row.get(5)?,
        offered_at: row.get::<_, Option<i64>>(6)?.map(time),
        updated_at: time(row.get(7)?),
    })
}
