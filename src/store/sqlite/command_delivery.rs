//! A device's side of the `command_targets` table: what it reports of its commands, and what it gets next.
use std::time::Duration;

use bytes::Bytes;
use fleetd_proto::v1::command::State;
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::commands::{state, time};
use super::devices::not_as_written;
use super::job::JobError;
use crate::commands::{self, Event, Pending};
use crate::ids::DeviceId;
use crate::store::{Delivery, Exchange, MapText, Report, UnixMillis};

/// Takes what the device reports, then hands out what is pending for it.
pub(super) fn exchange(
    connection: &Connection,
    device: &DeviceId,
    reports: &[Report],
    now: UnixMillis,
) -> Result<Exchange, JobError> {
    let mut statement = connection.prepare_cached("SELECT pk FROM devices WHERE id = ?1")?;
    let device: Option<i64> = statement.query_row([device.as_str()], |row| row.get(0)).optional()?;
    let Some(device) = device else { return Ok(Exchange::default()) };
    let mut exchange = Exchange::default();
    for report in reports {
        match apply_report(connection, device, report, now)? {
            true => exchange.applied += 1,
            false => exchange.ignored += 1,
        }
    }
    deliver(connection, device, now, &mut exchange)?;
    Ok(exchange)
}

/// Whether the report changed something.
fn apply_report(connection: &Connection, device: i64, report: &Report, now: UnixMillis) -> Result<bool, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT t.command_pk, t.state FROM commands c \
         JOIN command_targets t ON t.command_pk = c.pk AND t.device_pk = ?2 WHERE c.id = ?1 AND c.is_complete = 1",
    )?;
    let found = statement
        .query_row(params![report.command_id, device], |row| Ok((row.get::<_, i64>(0)?, state(row, 1)?)))
        .optional()?;
    let event = match report.state {
        State::Acked => Event::Acked,
        State::Succeeded => Event::Succeeded,
        State::Failed => Event::Failed,
        _ => return Ok(false),
    };
    let Some((command, reached)) = found.and_then(|(command, state)| Some((command, commands::next(state, event)?)))
    else {
        return Ok(false);
    };
    let is_over = reached != State::Acked;
    connection
        .prepare_cached(
            "UPDATE command_targets SET state = ?3, result = ?4, acked_at = coalesce(acked_at, ?5), finished_at = ?6 \
             WHERE command_pk = ?1 AND device_pk = ?2",
        )?
        .execute(params![
            command,
            device,
            reached as i32,
            &report.result[..],
            now.as_millis(),
            is_over.then_some(now.as_millis())
        ])?;
    Ok(true)
}

fn deliver(connection: &Connection, device: i64, now: UnixMillis, exchange: &mut Exchange) -> Result<(), JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT t.command_pk, t.state, t.attempts, t.delivered_at, t.acked_at, c.expires_at, c.timeout_ms, \
         length(c.payload) + length(c.parameters) FROM command_targets t INDEXED BY command_targets_pending \
         JOIN commands c ON c.pk = t.command_pk \
         WHERE t.device_pk = ?1 AND t.state <= 3 AND c.is_complete = 1 ORDER BY t.command_pk",
    )?;
    let pending = statement
        .query_map([device], |row| {
            let pending = Pending {
                state: state(row, 1)?,
                delivered_at: row.get::<_, Option<i64>>(3)?.map(time),
                acked_at: row.get::<_, Option<i64>>(4)?.map(time),
                expires_at: time(row.get(5)?),
                timeout: row.get::<_, Option<u32>>(6)?.map(|millis| Duration::from_millis(millis.into())),
                bytes: row.get::<_, u32>(7)? as usize,
            };
            Ok(((row.get::<_, i64>(0)?, row.get::<_, u32>(2)?), pending))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let (keys, pending): (Vec<_>, Vec<_>) = pending.into_iter().unzip();
    let plan = commands::plan(&pending, now);
    for place in &plan.expired {
        finish(connection, keys[*place].0, device, State::Expired, now)?;
    }
    let mut mark = connection.prepare_cached(
        "UPDATE command_targets SET state = 2, attempts = ?3, delivered_at = ?4 \
         WHERE command_pk = ?1 AND device_pk = ?2",
    )?;
    let mut read = connection.prepare_cached(
        "SELECT id, type, parameters, payload, created_at, expires_at, timeout_ms FROM commands WHERE pk = ?1",
    )?;
    for place in &plan.delivered {
        let (command, attempts) = keys[*place];
        let attempt = attempts.saturating_add(1);
        mark.execute(params![command, device, attempt, now.as_millis()])?;
        exchange.commands.push(read.query_row([command], |row| delivery(row, attempt))?);
    }
    exchange.expired += plan.expired.len() as u64;
    exchange.has_pending = plan.expired.len() < pending.len();
    Ok(())
}

fn finish(connection: &Connection, command: i64, device: i64, state: State, now: UnixMillis) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "UPDATE command_targets SET state = ?3, finished_at = ?4 WHERE command_pk = ?1 AND device_pk = ?2",
        )?
        .execute(params![command, device, state as i32, now.as_millis()])?;
    Ok(())
}

/// A command from the columns id, type, parameters, payload, created_at, expires_at, timeout_ms.
pub(super) fn delivery(row: &Row<'_>, attempt: u32) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: row.get(0)?,
        kind: row.get(1)?,
        parameters: MapText(row.get_ref(2)?.as_str()?).decode().map_err(not_as_written)?,
        payload: Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?),
        created_at: time(row.get(4)?),
        expires_at: time(row.get(5)?),
        timeout: row.get::<_, Option<u32>>(6)?.map(|millis| Duration::from_millis(millis.into())),
        attempt,
    })
}
