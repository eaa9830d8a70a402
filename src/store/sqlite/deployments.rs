//! The `deployments` table: how a deployment is begun, completed, changed and read.
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::types::Value;
use rusqlite::{params, params_from_iter, Connection, OptionalExtension, Row};

use super::commands::{millis, time};
use super::deployment_devices::{self, Counts, Entry};
use super::devices::unsigned;
use super::error::classify;
use super::job::JobError;
use super::{connection, updates, Queues};
use crate::commands::REQUEST_ID_LIFE;
use crate::ids::DeviceId;
use crate::store::{
    AttemptRecord, DeploymentChange, DeploymentDevice, DeploymentQuery, DeploymentRecord, NewDeployment, Paged,
    StoreError, StoreFuture, UnixMillis,
};

/// What the id of a deployment begins with.
const PREFIX: &str = "deploy";

/// Devices that one transaction takes on; at some 5 µs each they hold the writer for 20 ms, as a full group does.
const CHUNK: usize = 4_000;

/// Devices that one transaction of a step changes; at some 25 µs each they hold the writer for 50 ms.
const CHANGED_AT_ONCE: usize = 2_000;

/// Rows that a start removes in one transaction, while nobody waits.
const REMOVED_AT_ONCE: usize = 50_000;

/// Bytes of a queued write beside its texts.
const WRITE_OVERHEAD: usize = 512;

const CREATE: &str = "keep a deployment";
const SAVE: &str = "save a deployment";

/// The columns that [`to_deployment`] reads, in its order; complete deployments only, as others have no head.
macro_rules! select_deployments {
    ($rest:literal) => {
        concat!(
            "SELECT d.pk, d.update_id, d.created_by, d.config, d.device_filter, d.created_at, d.started_at, \
             d.finished_at, d.state, h.head FROM deployments d JOIN deployment_heads h ON h.deployment_pk = d.pk ",
            $rest
        )
    };
}

/// A request that only a bug in this program makes.
#[derive(Debug, thiserror::Error)]
pub enum Misuse {
    #[error("there is no deployment {0}")]
    NoDeployment(String),
    #[error("deployment {0} has no device {1}")]
    NoDevice(String, DeviceId),
    #[error("device {0} would have two places in one deployment")]
    TwoPlaces(DeviceId),
}

pub fn misuse(source: Misuse) -> JobError {
    StoreError::Backend { operation: SAVE, source: Arc::new(source) }.into()
}

/// Deployments whose devices are being written. One that is not complete and not here was given up by its caller.
#[derive(Clone, Debug, Default)]
pub struct Underway(Arc<Mutex<BTreeSet<i64>>>);

/// A place in [`Underway`], left when this is dropped.
struct Ticket {
    pk: i64,
    underway: Underway,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.underway.0.lock().remove(&self.pk);
    }
}

/// What a call that begins a deployment finds.
enum Begun<T> {
    New(T),
    Repeat(Box<DeploymentRecord>),
}

pub fn id_of(pk: i64) -> String {
    updates::id_of(PREFIX, pk)
}

pub fn number_of(id: &str) -> Option<i64> {
    updates::number_of(PREFIX, id)
}

/// Keeps a deployment with its devices; what fails half way is never seen, and removed by the next start.
pub async fn create(
    queues: Queues,
    deployment: NewDeployment,
    devices: Vec<DeploymentDevice>,
) -> Result<(DeploymentRecord, bool), StoreError> {
    let bytes = WRITE_OVERHEAD + deployment.config.len() + deployment.head.len();
    let deployment = Arc::new(deployment);
    let underway = queues.underway.clone();
    if devices.len() <= CHUNK {
        let bytes = bytes + devices.iter().map(deployment_devices::bytes).sum::<usize>();
        let create = queues.write(CREATE, bytes, move |connection| {
            let pk = match begin(connection, &deployment, &underway)? {
                Begun::New(pk) => pk,
                Begun::Repeat(record) => return Ok((*record, true)),
            };
            let (entries, counts) = index(&devices);
            deployment_devices::insert(connection, pk, &devices)?;
            deployment_devices::insert_entries(connection, pk, &entries)?;
            Ok((complete(connection, pk, &deployment, &counts)?, false))
        });
        return create.await;
    }
    let begun = Arc::clone(&deployment);
    let begun = queues.write(CREATE, bytes, move |connection| {
        Ok(match begin(connection, &begun, &underway)? {
            Begun::New(pk) => {
                underway.0.lock().insert(pk);
                Begun::New(Ticket { pk, underway })
            }
            Begun::Repeat(record) => Begun::Repeat(record),
        })
    });
    let ticket = match begun.await? {
        Begun::New(ticket) => ticket,
        Begun::Repeat(record) => return Ok((*record, true)),
    };
    let pk = ticket.pk;
    // Sorting a million takes a while, so not on the caller's thread, which is an asynchronous one.
    let sorted = queues.read(CREATE, move |_| {
        let mut devices = devices;
        devices.sort_unstable_by_key(|device| device.place);
        let (entries, counts) = index(&devices);
        Ok((devices, entries, counts))
    });
    let (devices, entries, counts) = sorted.await?;
    let (mut devices, mut entries) = (devices.into_iter(), entries.into_iter());
    while devices.len() > 0 {
        let chunk: Vec<_> = devices.by_ref().take(CHUNK).collect();
        // Other devices than those of `chunk`: each table is written in its own order, so that it is appended to.
        let entries: Vec<_> = entries.by_ref().take(CHUNK).collect();
        let bytes = chunk.iter().map(deployment_devices::bytes).sum::<usize>() + entries.len() * size_of::<Entry>();
        let write = queues.write(CREATE, bytes, move |connection| {
            deployment_devices::insert(connection, pk, &chunk)?;
            deployment_devices::insert_entries(connection, pk, &entries)
        });
        write.await?;
    }
    let completed =
        queues.write(CREATE, bytes, move |connection| complete(connection, pk, &deployment, &counts)).await?;
    drop(ticket);
    Ok((completed, false))
}

/// The entries of new devices in their order, and how many there are in each state.
fn index(devices: &[DeploymentDevice]) -> (Vec<Entry>, Counts) {
    let mut counts = Counts::new();
    let mut entries = Vec::with_capacity(devices.len());
    for device in devices {
        *counts.entry(device.state).or_default() += 1;
        entries.push(Entry { state: device.state, device_id: device.device_id.clone(), place: device.place });
    }
    entries.sort_unstable();
    (entries, counts)
}

/// The deployment of an earlier call with this `request_id`.
pub fn of_request(
    connection: &Connection,
    created_by: &str,
    request_id: &str,
    now: UnixMillis,
    underway: &Underway,
) -> Result<Option<DeploymentRecord>, JobError> {
    match find_request(connection, created_by, request_id, now, underway)? {
        Some((_, Some(record))) => Ok(Some(record)),
        _ => Ok(None),
    }
}

/// The deployment that has this `request_id`, and its record where a repeat is to be answered with it.
fn find_request(
    connection: &Connection,
    created_by: &str,
    request_id: &str,
    now: UnixMillis,
    underway: &Underway,
) -> Result<Option<(i64, Option<DeploymentRecord>)>, JobError> {
    let mut find = connection.prepare_cached(
        "SELECT pk, is_complete, created_at FROM deployments WHERE created_by = ?1 AND request_id = ?2",
    )?;
    let found = find
        .query_row([created_by, request_id], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    let Some((pk, is_complete, created_at)) = found else { return Ok(None) };
    if !is_complete && underway.0.lock().contains(&pk) {
        return Err(StoreError::InProgress { what: "the first call with this request_id" }.into());
    }
    let oldest = now.as_millis() - millis(REQUEST_ID_LIFE);
    let record = if is_complete && created_at >= oldest { read(connection, pk)? } else { None };
    Ok(Some((pk, record)))
}

fn begin(connection: &Connection, deployment: &NewDeployment, underway: &Underway) -> Result<Begun<i64>, JobError> {
    let request_id = Some(&deployment.request_id).filter(|id| !id.is_empty());
    if let Some(request_id) = request_id {
        let NewDeployment { created_by, created_at, .. } = deployment;
        match find_request(connection, created_by, request_id, *created_at, underway)? {
            Some((_, Some(record))) => return Ok(Begun::Repeat(Box::new(record))),
            Some((pk, None)) => {
                connection.prepare_cached("UPDATE deployments SET request_id = NULL WHERE pk = ?1")?.execute([pk])?;
            }
            None => {}
        }
    }
    connection
        .prepare_cached(
            "INSERT INTO deployments (is_complete, state, created_at, update_id, request_id, created_by, \
             device_filter, config) VALUES (0, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            deployment.state,
            deployment.created_at.as_millis(),
            deployment.update_id,
            request_id,
            deployment.created_by,
            deployment.device_filter,
            &deployment.config[..],
        ])?;
    Ok(Begun::New(connection.last_insert_rowid()))
}

/// From here on it is there.
fn complete(
    connection: &Connection,
    pk: i64,
    deployment: &NewDeployment,
    counts: &Counts,
) -> Result<DeploymentRecord, JobError> {
    connection.prepare_cached("UPDATE deployments SET is_complete = 1 WHERE pk = ?1")?.execute([pk])?;
    connection
        .prepare_cached("INSERT INTO deployment_heads (deployment_pk, head) VALUES (?1, ?2)")?
        .execute(params![pk, &deployment.head[..]])?;
    deployment_devices::add_counts(connection, pk, counts)?;
    Ok(DeploymentRecord {
        id: id_of(pk),
        number: pk,
        update_id: deployment.update_id.clone(),
        created_by: deployment.created_by.clone(),
        config: deployment.config.clone(),
        device_filter: deployment.device_filter.clone(),
        created_at: deployment.created_at,
        started_at: None,
        finished_at: None,
        state: deployment.state,
        head: deployment.head.clone(),
    })
}

/// Applies a step. A large one takes several transactions, so that others may write in between; all but the last one
/// hold nothing but devices and their attempts.
pub fn save(queues: Queues, change: DeploymentChange) -> StoreFuture<()> {
    if change.devices.len() <= CHANGED_AT_ONCE {
        return save_rest(&queues, change);
    }
    Box::pin(async move {
        let DeploymentChange { devices, attempts, .. } = change;
        let mut attempts_of: HashMap<DeviceId, Vec<AttemptRecord>> = HashMap::new();
        for attempt in attempts {
            attempts_of.entry(attempt.device_id.clone()).or_default().push(attempt);
        }
        let mut devices = devices.into_iter();
        while devices.len() > CHANGED_AT_ONCE {
            let devices: Vec<_> = devices.by_ref().take(CHANGED_AT_ONCE).collect();
            let attempts = devices.iter().filter_map(|device| attempts_of.remove(&device.device_id));
            let attempts: Vec<_> = attempts.flatten().collect();
            let id = change.deployment_id.clone();
            let write = queues.write(SAVE, bytes(&devices, &attempts), move |connection| {
                let pk = number_of(&id).ok_or_else(|| misuse(Misuse::NoDeployment(id)))?;
                deployment_devices::save(connection, pk, &devices)?;
                deployment_devices::save_attempts(connection, pk, &attempts, &devices)
            });
            write.await?;
        }
        let attempts = attempts_of.into_values().flatten().collect();
        save_rest(&queues, DeploymentChange { devices: devices.collect(), attempts, ..change }).await
    })
}

fn save_rest(queues: &Queues, change: DeploymentChange) -> StoreFuture<()> {
    let bytes = change.head.len() + bytes(&change.devices, &change.attempts);
    queues.write(SAVE, bytes, move |connection| save_whole(connection, &change))
}

fn bytes(devices: &[DeploymentDevice], attempts: &[AttemptRecord]) -> usize {
    let devices: usize = devices.iter().map(deployment_devices::bytes).sum();
    WRITE_OVERHEAD + devices + size_of_val(attempts)
}

fn save_whole(connection: &Connection, change: &DeploymentChange) -> Result<(), JobError> {
    let unknown = || misuse(Misuse::NoDeployment(change.deployment_id.clone()));
    let pk = number_of(&change.deployment_id).ok_or_else(unknown)?;
    let heads = connection
        .prepare_cached("UPDATE deployment_heads SET head = ?2 WHERE deployment_pk = ?1")?
        .execute(params![pk, &change.head[..]])?;
    if heads == 0 {
        return Err(unknown());
    }
    // Few steps change these, and the row is long.
    connection
        .prepare_cached(
            "UPDATE deployments SET state = ?2, started_at = ?3, finished_at = ?4 WHERE pk = ?1 \
             AND (state <> ?2 OR started_at IS NOT ?3 OR finished_at IS NOT ?4)",
        )?
        .execute(params![
            pk,
            change.state,
            change.started_at.map(UnixMillis::as_millis),
            change.finished_at.map(UnixMillis::as_millis),
        ])?;
    deployment_devices::save(connection, pk, &change.devices)?;
    deployment_devices::save_attempts(connection, pk, &change.attempts, &change.devices)
}

pub fn read(connection: &Connection, pk: i64) -> Result<Option<DeploymentRecord>, JobError> {
    let mut statement = connection.prepare_cached(select_deployments!("WHERE d.pk = ?1"))?;
    Ok(statement.query_row([pk], to_deployment).optional()?)
}

pub fn list(connection: &Connection, query: &DeploymentQuery) -> Result<Paged<DeploymentRecord>, JobError> {
    // The text of a statement is put together from constants alone; values are bound.
    let mut conditions = String::from("d.is_complete = 1");
    let mut values: Vec<Value> = Vec::new();
    if let Some(update) = &query.update_id {
        values.push(update.clone().into());
        conditions.push_str(" AND d.update_id = ?");
    }
    if let Some((_, others)) = query.states.split_first() {
        values.extend(query.states.iter().map(|state| Value::from(i64::from(*state))));
        conditions.push_str(" AND d.state IN (?");
        conditions.push_str(&", ?".repeat(others.len()));
        conditions.push(')');
    }
    let snapshot = connection.unchecked_transaction()?;
    let count = format!("SELECT count(*) FROM deployments d WHERE {conditions}");
    let total = snapshot.prepare(&count)?.query_row(params_from_iter(&values), |row| unsigned(row, 0))?;
    if let Some(after) = query.after {
        values.push(after.into());
        conditions.push_str(" AND d.pk < ?");
    }
    values.push(i64::try_from(query.limit).unwrap_or(i64::MAX).into());
    let select = format!("{} WHERE {conditions} ORDER BY d.pk DESC LIMIT ?", select_deployments!(""));
    let mut statement = snapshot.prepare(&select)?;
    let items = statement.query_map(params_from_iter(&values), to_deployment)?.collect::<Result<_, _>>()?;
    Ok(Paged { items, total })
}

/// Those without an end, oldest first. Reads on the calling thread.
pub fn read_open(path: &Path) -> Result<Vec<DeploymentRecord>, StoreError> {
    let connection = connection::open_reader(path)?;
    let read = || -> rusqlite::Result<Vec<DeploymentRecord>> {
        let mut statement = connection
            .prepare(select_deployments!("WHERE d.is_complete = 1 AND d.finished_at IS NULL ORDER BY d.pk"))?;
        let open = statement.query_map([], to_deployment)?.collect();
        open
    };
    read().map_err(|source| classify("read the open deployments", source))
}

/// Removes the deployments whose last device was never written. For the start, before anybody writes; what it does
/// not come to, the next one does.
pub fn remove_incomplete(connection: &Connection) -> Result<(), StoreError> {
    let failed = |source| classify("remove deployments that were never completed", source);
    let remove = || -> rusqlite::Result<()> {
        let mut find = connection.prepare("SELECT pk FROM deployments WHERE is_complete = 0 LIMIT 1")?;
        while let Some(pk) = find.query_row([], |row| row.get::<_, i64>(0)).optional()? {
            let transaction = connection.unchecked_transaction()?;
            let removed = deployment_devices::remove_some(&transaction, pk, REMOVED_AT_ONCE)?;
            if removed == 0 {
                transaction.execute("DELETE FROM deployments WHERE pk = ?1", [pk])?;
                tracing::info!(deployment = id_of(pk), "removed a deployment that was never completed");
            }
            transaction.commit()?;
        }
        Ok(())
    };
    remove().map_err(failed)
}

fn to_deployment(row: &Row<'_>) -> rusqlite::Result<DeploymentRecord> {
    let pk = row.get(0)?;
    let blob = |column| -> rusqlite::Result<Bytes> { Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?)) };
    Ok(DeploymentRecord {
        id: id_of(pk),
        number: pk,
        update_id: row.get(1)?,
        created_by: row.get(2)?,
        config: blob(3)?,
        device_filter: row.get(4)?,
        created_at: time(row.get(5)?),
        started_at: row.get::<_, Option<i64>>(6)?.map(time),
        finished_at: row.get::<_, Option<i64>>(7)?.map(time),
        state: row.get(8)?,
        head: blob(9)?,
    })
}
