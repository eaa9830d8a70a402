//! The `commands` and `command_targets` tables, as callers and the sweep see them; `command_delivery` is the devices' side.
use std::time::Duration;

use fleetd_proto::v1::command::State;
use rusqlite::types::Value;
use rusqlite::{params, params_from_iter, Connection, OptionalExtension, Row};

use super::command_delivery::{self, delivery};
use super::devices::unsigned;
use super::error::classify;
use super::job::JobError;
use super::{connection, SqliteStore};
use crate::commands::{self, MAX_PENDING, REMEMBERED, REQUEST_ID_LIFE, RETENTION};
use crate::ids::DeviceId;
use crate::store::device::encode_map;
use crate::store::{
    Answer, Canceled, CommandFailures, CommandPage, CommandPlace, CommandQuery, CommandRecord, CommandStore, Exchange,
    NewCommand, Report, Sent, StoreError, StoreFuture, Swept, UnixMillis,
};

/// Targets that one transaction takes on; at some 10 µs each they hold the writer for 20 ms.
const CHUNK: usize = 2_000;

/// Commands that one sweep looks at.
const SWEPT_COMMANDS: i64 = 64;

/// When a sweep looks again at a command that some device works on beyond the command's life.
const WORKED_ON_AGAIN: Duration = Duration::from_secs(60);

/// Bytes of a queued write beside its texts.
const WRITE_OVERHEAD: usize = 512;

/// What a call that begins a command finds.
enum Begun {
    /// The command's key; its targets come next.
    New(i64),
    Repeat(Sent),
}

impl CommandStore for SqliteStore {
    fn send_command(&self, command: NewCommand, devices: Vec<DeviceId>) -> Answer<Result<Sent, StoreError>> {
        let queues = self.queues.clone();
        Box::pin(async move {
            let operation = "queue a command";
            let bytes = WRITE_OVERHEAD + command.payload.len();
            let sent = Sent {
                id: command.id.clone(),
                targets: 0,
                refused: 0,
                created_at: command.created_at,
                expires_at: command.expires_at,
            };
            if devices.len() <= CHUNK {
                let bytes = bytes + devices.len() * size_of::<DeviceId>();
                return queues
                    .write(operation, bytes, move |connection| match begin(connection, &command)? {
                        Begun::Repeat(sent) => Ok(sent),
                        Begun::New(pk) => {
                            let (targets, refused) = add_targets(connection, pk, &devices)?;
                            complete(connection, pk, targets, refused)?;
                            Ok(Sent { targets, refused, ..sent })
                        }
                    })
                    .await;
            }
            let pk = match queues.write(operation, bytes, move |connection| begin(connection, &command)).await? {
                Begun::Repeat(sent) => return Ok(sent),
                Begun::New(pk) => pk,
            };
            let (mut targets, mut refused) = (0, 0);
            let mut devices = devices.into_iter();
            while devices.len() > 0 {
                let chunk: Vec<_> = devices.by_ref().take(CHUNK).collect();
                let bytes = chunk.len() * size_of::<DeviceId>();
                // What fails here leaves a command without an end, which the sweep removes.
                let added =
                    queues.write(operation, bytes, move |connection| add_targets(connection, pk, &chunk)).await?;
                targets += added.0;
                refused += added.1;
            }
            queues.write(operation, 0, move |connection| complete(connection, pk, targets, refused)).await?;
            Ok(Sent { targets, refused, ..sent })
        })
    }

    fn exchange_commands(&self, device: &DeviceId, reports: Vec<Report>, now: UnixMillis) -> StoreFuture<Exchange> {
        let device = device.clone();
        let bytes = WRITE_OVERHEAD + reports.iter().map(|report| report.result.len()).sum::<usize>();
        self.write("exchange a device's commands", bytes, move |connection| {
            command_delivery::exchange(connection, &device, &reports, now)
        })
    }

    fn list_commands(&self, query: CommandQuery) -> StoreFuture<CommandPage> {
        self.read("list commands", move |connection| list(connection, &query))
    }

    fn cancel_command(
        &self,
        command_id: &str,
        device: Option<&DeviceId>,
        now: UnixMillis,
    ) -> Answer<Result<Option<Canceled>, StoreError>> {
        let queues = self.queues.clone();
        let (command_id, device) = (command_id.to_owned(), device.cloned());
        Box::pin(async move {
            let mut canceled = 0;
            loop {
                let (id, device) = (command_id.clone(), device.clone());
                let step = queues.write("cancel a command", WRITE_OVERHEAD, move |connection| {
                    cancel_some(connection, &id, device.as_ref(), now)
                });
                let Some((now_canceled, others)) = step.await? else { return Ok(None) };
                canceled += now_canceled;
                if now_canceled < CHUNK as u64 {
                    // `others` has those that this call canceled before.
                    let too_late = others - (canceled - now_canceled);
                    return Ok(Some(Canceled { canceled, too_late }));
                }
            }
        })
    }

    fn sweep_commands(&self, now: UnixMillis) -> StoreFuture<Swept> {
        self.write("sweep commands", WRITE_OVERHEAD, move |connection| sweep(connection, now))
    }

    fn command_failures(&self, devices: Vec<DeviceId>, since: UnixMillis) -> StoreFuture<Vec<CommandFailures>> {
        self.read("count commands that failed", move |connection| failures(connection, &devices, since))
    }

    fn for_each_commanded_device(&self, each: &mut dyn FnMut(&str)) -> Result<(), StoreError> {
        let connection = connection::open_reader(&self.path)?;
        let failed = |source| classify("read which devices have commands", source);
        let mut statement = connection
            .prepare(
                "SELECT id FROM devices WHERE pk IN (SELECT device_pk FROM command_targets \
                 INDEXED BY command_targets_pending WHERE state <= 3)",
            )
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            each(row.get_ref(0).and_then(|id| Ok(id.as_str()?)).map_err(failed)?);
        }
        Ok(())
    }
}

fn begin(connection: &Connection, command: &NewCommand) -> Result<Begun, JobError> {
    let request_id = Some(&command.request_id).filter(|id| !id.is_empty());
    if let Some(request_id) = request_id {
        let oldest = command.created_at.as_millis() - millis(REQUEST_ID_LIFE);
        connection
            .prepare_cached(
                "UPDATE commands SET request_id = NULL WHERE created_by = ?1 AND request_id = ?2 AND created_at < ?3",
            )?
            .execute(params![command.created_by, request_id, oldest])?;
        let mut statement = connection.prepare_cached(
            "SELECT id, targets, refused, created_at, expires_at, is_complete FROM commands \
             WHERE created_by = ?1 AND request_id = ?2",
        )?;
        let found = statement
            .query_row(params![command.created_by, request_id], |row| {
                let sent = Sent {
                    id: row.get(0)?,
                    targets: row.get(1)?,
                    refused: row.get(2)?,
                    created_at: time(row.get(3)?),
                    expires_at: time(row.get(4)?),
                };
                Ok((sent, row.get::<_, bool>(5)?))
            })
            .optional()?;
        match found {
            Some((sent, true)) => return Ok(Begun::Repeat(sent)),
            Some((_, false)) => {
                return Err(StoreError::InProgress { what: "the first call with this request_id" }.into())
            }
            None => {}
        }
    }
    connection
        .prepare_cached(
            "INSERT INTO commands (id, request_id, created_by, type, parameters, payload, created_at, expires_at, \
             timeout_ms, sweep_at, is_complete, targets, refused) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?8, 0, 0, 0)",
        )?
        .execute(params![
            command.id,
            request_id,
            command.created_by,
            command.kind,
            encode_map(&command.parameters),
            &command.payload[..],
            command.created_at.as_millis(),
            command.expires_at.as_millis(),
            command.timeout.map(millis),
        ])?;
    Ok(Begun::New(connection.last_insert_rowid()))
}

/// Queues the command for each device that has room; returns how many have, and how many have not.
fn add_targets(connection: &Connection, command: i64, devices: &[DeviceId]) -> Result<(u32, u32), JobError> {
    let mut find = connection.prepare_cached("SELECT pk FROM devices WHERE id = ?1")?;
    let mut count = connection.prepare_cached(
        "SELECT count(*) FROM command_targets INDEXED BY command_targets_pending WHERE device_pk = ?1 AND state <= 3",
    )?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO command_targets (command_pk, device_pk, state, attempts) VALUES (?1, ?2, 1, 0) \
         ON CONFLICT DO NOTHING",
    )?;
    let (mut targets, mut refused) = (0, 0);
    for device in devices {
        let found: Option<i64> = find.query_row([device.as_str()], |row| row.get(0)).optional()?;
        let Some(device) = found else { continue };
        let pending: i64 = count.query_row([device], |row| row.get(0))?;
        if pending >= MAX_PENDING as i64 {
            refused += 1;
        } else {
            targets += insert.execute([command, device])? as u32;
        }
    }
    Ok((targets, refused))
}

/// From here on devices get it. A call that queued nothing is not remembered by its `request_id`: who tries again when
/// the devices have room is not answered by the refusal of before.
fn complete(connection: &Connection, command: i64, targets: u32, refused: u32) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "UPDATE commands SET is_complete = 1, targets = ?2, refused = ?3, \
             request_id = CASE WHEN ?2 > 0 THEN request_id END WHERE pk = ?1",
        )?
        .execute(params![command, targets, refused])?;
    Ok(())
}

fn list(connection: &Connection, query: &CommandQuery) -> Result<CommandPage, JobError> {
    // The text of a statement is put together from constants alone; values are bound.
    let mut conditions = String::from("c.is_complete = 1");
    let mut values: Vec<Value> = Vec::new();
    if let Some(id) = &query.command_id {
        values.push(id.clone().into());
        conditions.push_str(" AND t.command_pk = (SELECT pk FROM commands WHERE id = ?)");
    }
    if let Some(device) = &query.device {
        values.push(device.clone().into());
        conditions.push_str(" AND t.device_pk = (SELECT pk FROM devices WHERE id = ?)");
    }
    if let Some(state) = query.state {
        values.push(i64::from(state as i32).into());
        conditions.push_str(" AND t.state = ?");
    }
    let from = "FROM command_targets t JOIN commands c ON c.pk = t.command_pk";
    let count = format!("SELECT count(*) {from} WHERE {conditions}");
    let total = connection.prepare_cached(&count)?.query_row(params_from_iter(&values), |row| unsigned(row, 0))?;
    if let Some(after) = query.after {
        values.extend([after.command.into(), after.command.into(), after.device.into()]);
        conditions.push_str(" AND (t.command_pk < ? OR (t.command_pk = ? AND t.device_pk > ?))");
    }
    values.push(i64::try_from(query.limit).unwrap_or(i64::MAX).into());
    let select = format!(
        "SELECT c.id, c.type, c.parameters, c.payload, c.created_at, c.expires_at, c.timeout_ms, t.attempts, \
         t.state, t.delivered_at, t.finished_at, t.result, c.created_by, t.command_pk, t.device_pk, \
         (SELECT id FROM devices WHERE pk = t.device_pk) \
         {from} WHERE {conditions} ORDER BY t.command_pk DESC, t.device_pk LIMIT ?"
    );
    let mut statement = connection.prepare_cached(&select)?;
    let records = statement
        .query_map(params_from_iter(&values), |row| {
            Ok(CommandRecord {
                command: delivery(row, row.get(7)?)?,
                state: state(row, 8)?,
                delivered_at: row.get::<_, Option<i64>>(9)?.map(time),
                finished_at: row.get::<_, Option<i64>>(10)?.map(time),
                result: row.get::<_, Option<Vec<u8>>>(11)?.unwrap_or_default().into(),
                created_by: row.get(12)?,
                place: CommandPlace { command: row.get(13)?, device: row.get(14)? },
                device_id: row.get(15)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(CommandPage { records, total })
}

fn failures(
    connection: &Connection,
    devices: &[DeviceId],
    since: UnixMillis,
) -> Result<Vec<CommandFailures>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FILTER (WHERE state = 5), count(*) FILTER (WHERE state = 6) FROM \
         (SELECT state, finished_at FROM command_targets WHERE device_pk = (SELECT pk FROM devices WHERE id = ?1) \
          ORDER BY command_pk DESC LIMIT ?3) WHERE finished_at >= ?2",
    )?;
    let of = |device: &DeviceId| {
        statement.query_row(params![device.as_str(), since.as_millis(), REMEMBERED as i64], |row| {
            Ok(CommandFailures { failed: row.get(0)?, expired: row.get(1)? })
        })
    };
    Ok(devices.iter().map(of).collect::<Result<_, _>>()?)
}

/// Cancels up to [`CHUNK`] targets; returns how many, and how many are not QUEUED (those canceled before included).
fn cancel_some(
    connection: &Connection,
    command_id: &str,
    device: Option<&DeviceId>,
    now: UnixMillis,
) -> Result<Option<(u64, u64)>, JobError> {
    let mut statement = connection.prepare_cached("SELECT pk FROM commands WHERE id = ?1 AND is_complete = 1")?;
    let command: Option<i64> = statement.query_row([command_id], |row| row.get(0)).optional()?;
    let Some(command) = command else { return Ok(None) };
    let device = device.map(DeviceId::as_str);
    let mut others = connection.prepare_cached(
        "SELECT count(*) FROM command_targets WHERE command_pk = ?1 AND state <> 1 \
         AND (?2 IS NULL OR device_pk = (SELECT pk FROM devices WHERE id = ?2))",
    )?;
    let others = others.query_row(params![command, device], |row| unsigned(row, 0))?;
    let mut cancel = connection.prepare_cached(
        "UPDATE command_targets SET state = 7, finished_at = ?3 WHERE command_pk = ?1 AND device_pk IN \
         (SELECT device_pk FROM command_targets WHERE state = 1 AND command_pk = ?1 \
          AND (?2 IS NULL OR device_pk = (SELECT pk FROM devices WHERE id = ?2)) LIMIT ?4)",
    )?;
    let canceled = cancel.execute(params![command, device, now.as_millis(), CHUNK as i64])?;
    Ok(Some((canceled as u64, others)))
}

fn sweep(connection: &Connection, now: UnixMillis) -> Result<Swept, JobError> {
    let mut swept = Swept::default();
    let mut due = connection.prepare_cached(
        "SELECT pk, timeout_ms FROM commands WHERE sweep_at <= ?1 AND is_complete = 1 ORDER BY sweep_at LIMIT ?2",
    )?;
    let due = due
        .query_map(params![now.as_millis(), SWEPT_COMMANDS], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, Option<i64>)>, _>>()?;
    swept.has_more = due.len() == SWEPT_COMMANDS as usize;
    for (command, timeout) in due {
        let timeout = timeout.unwrap_or(millis(commands::DEFAULT_TIMEOUT));
        let room = CHUNK - swept.expired as usize;
        let expired = expire_targets(connection, command, timeout, now, room)?;
        swept.expired += expired as u64;
        // What this sweep has no room for is due at the next.
        if expired == room {
            swept.has_more = true;
            break;
        }
        connection
            .prepare_cached(
                "UPDATE commands SET sweep_at = CASE WHEN EXISTS (SELECT 1 FROM command_targets \
                 WHERE state = 3 AND command_pk = ?1) THEN ?2 END WHERE pk = ?1",
            )?
            .execute(params![command, now.as_millis() + millis(WORKED_ON_AGAIN)])?;
    }
    prune(connection, now, &mut swept)?;
    Ok(swept)
}

/// Ends what is late of a command whose life is over: what no device began, and what a device works on for too long
/// (the rule of `Pending::is_over`). At most `most` targets.
fn expire_targets(
    connection: &Connection,
    command: i64,
    timeout: i64,
    now: UnixMillis,
    most: usize,
) -> Result<usize, JobError> {
    let expired = connection
        .prepare_cached(
            "UPDATE command_targets SET state = 6, finished_at = ?2 WHERE command_pk = ?1 AND device_pk IN \
             (SELECT device_pk FROM command_targets WHERE command_pk = ?1 AND (state IN (1, 2) \
              OR (state = 3 AND acked_at + ?3 <= ?2)) LIMIT ?4)",
        )?
        .execute(params![command, now.as_millis(), timeout, most as i64])?;
    Ok(expired)
}

/// Deletes commands that are over for long, and those whose call died half way.
fn prune(connection: &Connection, now: UnixMillis, swept: &mut Swept) -> Result<(), JobError> {
    let mut stale = connection.prepare_cached(
        "SELECT pk FROM commands WHERE (expires_at < ?1 AND is_complete = 1 AND sweep_at IS NULL) \
         OR (is_complete = 0 AND created_at < ?2) LIMIT 1",
    )?;
    let over = now.as_millis() - millis(RETENTION);
    let abandoned = now.as_millis() - millis(REQUEST_ID_LIFE);
    let Some(command) = stale.query_row([over, abandoned], |row| row.get::<_, i64>(0)).optional()? else {
        return Ok(());
    };
    let targets = connection
        .prepare_cached(
            "DELETE FROM command_targets WHERE command_pk = ?1 AND device_pk IN \
             (SELECT device_pk FROM command_targets WHERE command_pk = ?1 LIMIT ?2)",
        )?
        .execute([command, CHUNK as i64])?;
    if targets < CHUNK {
        connection.prepare_cached("DELETE FROM commands WHERE pk = ?1")?.execute([command])?;
    }
    swept.pruned += targets as u64;
    swept.has_more = true;
    Ok(())
}

pub(super) fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    let number: i32 = row.get(column)?;
    State::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number.into()))
}

pub(super) fn time(millis: i64) -> UnixMillis {
    UnixMillis::from_millis_clamped(millis)
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
