//! The `devices` table.
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::error::classify;
use super::job::JobError;
use super::{connection, SqliteStore};
use crate::auth::KeyHash;
use crate::ids::DeviceId;
use crate::store::device::encode_map;
use crate::store::{
    Answer, Device, DeviceChange, DeviceRow, DeviceStore, LastSeen, MapText, StoreError, StoreFuture, UnixMillis,
};

/// Devices of a bulk write that share one piece of work. At some 20 µs each they hold the writer for 20 ms, so a
/// single registration that comes between waits no longer than for a full group.
const BULK_CHUNK: usize = 1_000;

/// Bytes of a queued write beside its texts: the structure itself and its boxes.
const WRITE_OVERHEAD: usize = 512;

/// The columns that [`read_row`] reads, in its order.
macro_rules! select_devices {
    ($rest:literal) => {
        concat!(
            "SELECT id, key_hash, revision, maintenance, registered_at, last_seen, name, type, version, metadata, \
             labels, system_info, heartbeat_interval_ms, is_offline, is_late FROM devices ",
            $rest
        )
    };
}

impl DeviceStore for SqliteStore {
    fn register(&self, device: Device) -> StoreFuture<()> {
        let device = NewDevice::from(device);
        self.write("register a device", device.bytes(), move |connection| device.insert(connection))
    }

    fn register_many(&self, devices: Vec<Device>) -> Answer<Vec<Result<(), StoreError>>> {
        let queues = self.queues.clone();
        Box::pin(async move {
            let mut results = Vec::with_capacity(devices.len());
            let mut devices = devices.into_iter();
            while devices.len() > 0 {
                let chunk: Vec<_> = devices.by_ref().take(BULK_CHUNK).map(NewDevice::from).collect();
                let (size, bytes) = (chunk.len(), chunk.iter().map(NewDevice::bytes).sum());
                let chunk_results =
                    queues.write("register devices", bytes, move |connection| insert_all(connection, &chunk));
                match chunk_results.await {
                    Ok(chunk_results) => results.extend(chunk_results),
                    Err(error) => results.extend(std::iter::repeat_n(Err(error), size)),
                }
            }
            results
        })
    }

    fn device(&self, id: &DeviceId) -> StoreFuture<Option<Device>> {
        let id = id.clone();
        self.read("read a device", move |connection| {
            let mut statement = connection.prepare_cached(select_devices!("WHERE id = ?1"))?;
            Ok(statement.query_row([id.as_str()], to_device).optional()?)
        })
    }

    fn devices(&self, ids: Vec<DeviceId>) -> StoreFuture<Vec<Device>> {
        self.read("read devices", move |connection| {
            let mut statement = connection.prepare_cached(select_devices!("WHERE id = ?1"))?;
            let mut devices = Vec::with_capacity(ids.len());
            for id in &ids {
                devices.extend(statement.query_row([id.as_str()], to_device).optional()?);
            }
            Ok(devices)
        })
    }

    fn device_of_key(&self, key: &KeyHash) -> StoreFuture<Option<DeviceId>> {
        let key = *key;
        self.read("find the device of a key", move |connection| {
            let mut statement = connection.prepare_cached("SELECT id FROM devices WHERE key_hash = ?1")?;
            Ok(statement.query_row([key.as_bytes()], |row| device_id(row.get_ref(0)?.as_str()?)).optional()?)
        })
    }

    fn list(&self, after: Option<&str>, limit: usize) -> StoreFuture<Vec<Device>> {
        // No id is empty, so the empty text comes before all of them.
        let after = after.unwrap_or_default().to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("list devices", move |connection| {
            let mut statement = connection.prepare_cached(select_devices!("WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            let devices = statement.query_map(params![after, limit], to_device)?;
            Ok(devices.collect::<Result<_, _>>()?)
        })
    }

    fn count(&self) -> StoreFuture<u64> {
        self.read("count devices", |connection| {
            let mut statement = connection.prepare_cached("SELECT n FROM device_count")?;
            Ok(statement.query_row([], |row| unsigned(row, 0))?)
        })
    }

    fn update(&self, id: &DeviceId, change: DeviceChange) -> StoreFuture<Option<Device>> {
        let id = id.clone();
        self.write("change a device", WRITE_OVERHEAD, move |connection| {
            let mut statement = connection.prepare_cached(select_devices!("WHERE id = ?1"))?;
            let Some(device) = statement.query_row([id.as_str()], to_device).optional()? else { return Ok(None) };
            let Some(changed) = change(&device).filter(|changed| *changed != device) else { return Ok(Some(device)) };
            let revision = device.revision + 1;
            let Device { id, key_hash, registered_at, last_seen, .. } = device;
            let changed = Device { id, key_hash, registered_at, last_seen, revision, ..changed };
            overwrite(connection, &changed)?;
            Ok(Some(changed))
        })
    }

    fn remove(&self, id: &DeviceId, key: &KeyHash) -> StoreFuture<()> {
        let (id, key) = (id.clone(), *key);
        self.write("remove a device", WRITE_OVERHEAD, move |connection| {
            let mut statement = connection.prepare_cached("DELETE FROM devices WHERE id = ?1 AND key_hash = ?2")?;
            match statement.execute(params![id.as_str(), key.as_bytes()])? {
                0 => Err(StoreError::NotFound(id).into()),
                _ => Ok(()),
            }
        })
    }

    fn touch(&self, seen: Vec<LastSeen>) -> StoreFuture<()> {
        let queues = self.queues.clone();
        Box::pin(async move {
            let mut seen = seen.into_iter();
            while seen.len() > 0 {
                let chunk: Vec<_> = seen.by_ref().take(BULK_CHUNK).collect();
                let bytes = chunk.len() * size_of::<LastSeen>();
                queues.write("note when devices were last seen", bytes, move |c| touch_all(c, &chunk)).await?;
            }
            Ok(())
        })
    }

    fn for_each_device(&self, each: &mut dyn FnMut(DeviceRow<'_>)) -> Result<u64, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        let failed = |source| classify("read all devices", source);
        let mut statement = connection.prepare(select_devices!("")).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(failed)? {
            each(read_row(row).map_err(failed)?);
            count += 1;
        }
        Ok(count)
    }
}

/// A device whose maps are encoded, which the caller's thread does, so that the one writer need not.
struct NewDevice {
    device: Device,
    metadata: String,
    labels: String,
}

impl From<Device> for NewDevice {
    fn from(device: Device) -> Self {
        Self { metadata: encode_map(&device.metadata), labels: encode_map(&device.labels), device }
    }
}

impl NewDevice {
    /// About what it holds in memory, its maps counted twice: decoded and encoded.
    fn bytes(&self) -> usize {
        let texts = [self.device.id.as_str(), &self.device.name, &self.device.device_type, &self.device.version];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        WRITE_OVERHEAD + texts + 2 * (self.metadata.len() + self.labels.len()) + self.device.system_info.len()
    }

    fn insert(&self, connection: &Connection) -> Result<(), JobError> {
        let device = &self.device;
        let mut statement = connection.prepare_cached(
            "INSERT INTO devices (id, key_hash, revision, maintenance, registered_at, last_seen, name, type, version, \
             metadata, labels, system_info, heartbeat_interval_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT (id) DO NOTHING",
        )?;
        let inserted = statement.execute(params![
            device.id.as_str(),
            device.key_hash.as_bytes(),
            i64::try_from(device.revision).unwrap_or(i64::MAX),
            device.maintenance,
            device.registered_at.as_millis(),
            device.last_seen.map(UnixMillis::as_millis),
            device.name,
            device.device_type,
            device.version,
            self.metadata,
            self.labels,
            &device.system_info[..],
            interval_millis(device),
        ])?;
        match inserted {
            0 => Err(StoreError::AlreadyExists(device.id.clone()).into()),
            _ => Ok(()),
        }
    }
}

fn overwrite(connection: &Connection, device: &Device) -> Result<(), JobError> {
    let mut statement = connection.prepare_cached(
        "UPDATE devices SET revision = ?2, maintenance = ?3, name = ?4, type = ?5, version = ?6, metadata = ?7, \
         labels = ?8, system_info = ?9, heartbeat_interval_ms = ?10 WHERE id = ?1",
    )?;
    statement.execute(params![
        device.id.as_str(),
        i64::try_from(device.revision).unwrap_or(i64::MAX),
        device.maintenance,
        device.name,
        device.device_type,
        device.version,
        encode_map(&device.metadata),
        encode_map(&device.labels),
        &device.system_info[..],
        interval_millis(device),
    ])?;
    Ok(())
}

fn interval_millis(device: &Device) -> Option<i64> {
    device.heartbeat_interval.map(|interval| i64::try_from(interval.as_millis()).unwrap_or(i64::MAX))
}

/// Inserts what can be inserted. An error of the database itself ends it, and undoes the whole chunk.
fn insert_all(connection: &Connection, devices: &[NewDevice]) -> Result<Vec<Result<(), StoreError>>, JobError> {
    let mut results = Vec::with_capacity(devices.len());
    for device in devices {
        results.push(match device.insert(connection) {
            Ok(()) => Ok(()),
            Err(JobError::Refused(error)) => Err(error),
            Err(error) => return Err(error),
        });
    }
    Ok(results)
}

fn touch_all(connection: &Connection, seen: &[LastSeen]) -> Result<(), JobError> {
    let mut statement = connection.prepare_cached(
        "UPDATE devices SET last_seen = max(?2, coalesce(last_seen, ?2)), is_late = ?3, is_offline = ?4 WHERE id = ?1",
    )?;
    for LastSeen { device, at, is_late, is_offline } in seen {
        statement.execute(params![device.as_str(), at.as_millis(), is_late, is_offline])?;
    }
    Ok(())
}

fn to_device(row: &Row<'_>) -> rusqlite::Result<Device> {
    let row = read_row(row)?;
    Ok(Device {
        id: device_id(row.id)?,
        name: row.name.to_owned(),
        device_type: row.device_type.to_owned(),
        version: row.version.to_owned(),
        metadata: row.metadata.decode().map_err(not_as_written)?,
        labels: row.labels.decode().map_err(not_as_written)?,
        system_info: Bytes::copy_from_slice(row.system_info),
        registered_at: row.registered_at,
        last_seen: row.last_seen,
        key_hash: row.key_hash,
        revision: row.revision,
        maintenance: row.maintenance,
        heartbeat_interval: row.heartbeat_interval,
    })
}

/// Borrows a row of [`select_devices`].
fn read_row<'a>(row: &'a Row<'_>) -> rusqlite::Result<DeviceRow<'a>> {
    let text = |column| -> rusqlite::Result<&'a str> { Ok(row.get_ref(column)?.as_str()?) };
    let key_hash = row.get_ref(1)?.as_blob()?;
    let key_hash = <[u8; 32]>::try_from(key_hash)
        .map_err(|_| FromSqlError::InvalidBlobSize { expected_size: 32, blob_size: key_hash.len() })?;
    Ok(DeviceRow {
        id: text(0)?,
        key_hash: KeyHash::from_bytes(key_hash),
        revision: unsigned(row, 2)?,
        maintenance: row.get(3)?,
        registered_at: UnixMillis::from_millis_clamped(row.get(4)?),
        last_seen: row.get::<_, Option<i64>>(5)?.map(UnixMillis::from_millis_clamped),
        name: text(6)?,
        device_type: text(7)?,
        version: text(8)?,
        metadata: MapText(text(9)?),
        labels: MapText(text(10)?),
        system_info: row.get_ref(11)?.as_blob()?,
        heartbeat_interval: row.get::<_, Option<u32>>(12)?.map(|millis| Duration::from_millis(millis.into())),
        is_offline: row.get(13)?,
        is_late: row.get(14)?,
    })
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn device_id(text: &str) -> rusqlite::Result<DeviceId> {
    DeviceId::parse(text).map_err(not_as_written)
}

/// A value that this program would not have written.
pub(super) fn not_as_written(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}
