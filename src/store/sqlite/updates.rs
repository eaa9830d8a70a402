//! The `updates` table, and the way from [`UpdateStore`] to those of the deployments.
use bytes::Bytes;
use rusqlite::{params, Connection, OptionalExtension, Row};

use super::commands::time;
use super::devices::unsigned;
use super::job::JobError;
use super::{deployment_devices, deployments, SqliteStore};
use crate::clock::UnixMillis;
use crate::ids::DeviceId;
use crate::store::{
    Answer, AttemptRecord, DeploymentChange, DeploymentDevice, DeploymentDeviceQuery, DeploymentQuery,
    DeploymentRecord, NewDeployment, NewUpdate, Paged, StoreError, StoreFuture, UpdateRecord, UpdateStore,
};

/// What the id of an update begins with.
const PREFIX: &str = "update";

/// Bytes of a queued write beside its texts.
const WRITE_OVERHEAD: usize = 512;

impl UpdateStore for SqliteStore {
    fn create_update(&self, update: NewUpdate) -> StoreFuture<UpdateRecord> {
        let bytes = WRITE_OVERHEAD + update.body.len();
        self.write("keep an update", bytes, move |connection| create(connection, update))
    }

    fn update_record(&self, id: &str) -> StoreFuture<Option<UpdateRecord>> {
        let pk = number_of(PREFIX, id);
        self.read("read an update", move |connection| {
            let mut statement = connection.prepare_cached("SELECT pk, created_at, body FROM updates WHERE pk = ?1")?;
            Ok(statement.query_row([pk], to_update).optional()?)
        })
    }

    fn update_of_version(&self, version: &str) -> StoreFuture<Option<UpdateRecord>> {
        let version = version.to_owned();
        self.read("find the update of a version", move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT pk, created_at, body FROM updates WHERE version = ?1 ORDER BY pk DESC LIMIT 1",
            )?;
            Ok(statement.query_row([version], to_update).optional()?)
        })
    }

    fn list_updates(&self, after: Option<&str>, limit: usize) -> StoreFuture<Paged<UpdateRecord>> {
        // Nothing comes before what was never given out.
        let before = after.map_or(i64::MAX, |id| number_of(PREFIX, id).unwrap_or(0));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("list updates", move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let mut count = snapshot.prepare_cached("SELECT count(*) FROM updates")?;
            let total = count.query_row([], |row| unsigned(row, 0))?;
            let mut statement = snapshot
                .prepare_cached("SELECT pk, created_at, body FROM updates WHERE pk < ?1 ORDER BY pk DESC LIMIT ?2")?;
            let items = statement.query_map([before, limit], to_update)?.collect::<Result<_, _>>()?;
            Ok(Paged { items, total })
        })
    }

    fn create_deployment(
        &self,
        deployment: NewDeployment,
        devices: Vec<DeploymentDevice>,
    ) -> Answer<Result<(DeploymentRecord, bool), StoreError>> {
        Box::pin(deployments::create(self.queues.clone(), deployment, devices))
    }

    fn deployment_of_request(&self, created_by: &str, request_id: &str) -> StoreFuture<Option<DeploymentRecord>> {
        if request_id.is_empty() {
            return Box::pin(std::future::ready(Ok(None)));
        }
        let (created_by, request_id) = (created_by.to_owned(), request_id.to_owned());
        let underway = self.queues.underway.clone();
        self.read("find the deployment of a request", move |connection| {
            deployments::of_request(connection, &created_by, &request_id, UnixMillis::now(), &underway)
        })
    }

    fn deployment(&self, id: &str) -> StoreFuture<Option<DeploymentRecord>> {
        let pk = deployments::number_of(id);
        self.read("read a deployment", move |connection| match pk {
            Some(pk) => deployments::read(connection, pk),
            None => Ok(None),
        })
    }

    fn list_deployments(&self, query: DeploymentQuery) -> StoreFuture<Paged<DeploymentRecord>> {
        self.read("list deployments", move |connection| deployments::list(connection, &query))
    }

    fn save_deployment(&self, change: DeploymentChange) -> StoreFuture<()> {
        deployments::save(self.queues.clone(), change)
    }

    fn deployment_devices(&self, query: DeploymentDeviceQuery) -> StoreFuture<Paged<DeploymentDevice>> {
        let pk = deployments::number_of(&query.deployment_id);
        self.read("list the devices of a deployment", move |connection| match pk {
            Some(pk) => deployment_devices::list(connection, pk, &query),
            None => Ok(Paged { items: Vec::new(), total: 0 }),
        })
    }

    fn deployment_device(&self, deployment_id: &str, device: &DeviceId) -> StoreFuture<Option<DeploymentDevice>> {
        let (pk, device) = (deployments::number_of(deployment_id), device.clone());
        self.read("read a device of a deployment", move |connection| match pk {
            Some(pk) => deployment_devices::read(connection, pk, &device),
            None => Ok(None),
        })
    }

    fn last_deployment_of(&self, device: &DeviceId) -> StoreFuture<Option<String>> {
        let device = device.clone();
        self.read("find the last deployment of a device", move |connection| {
            Ok(deployment_devices::last_deployment(connection, &device)?.map(deployments::id_of))
        })
    }

    fn attempts_of(&self, deployment_id: &str, device: &DeviceId) -> StoreFuture<Vec<AttemptRecord>> {
        let (pk, device) = (deployments::number_of(deployment_id), device.clone());
        self.read("read the attempts on a device", move |connection| match pk {
            Some(pk) => deployment_devices::attempts(connection, pk, &device),
            None => Ok(Vec::new()),
        })
    }

    fn open_deployments(&self) -> Result<Vec<DeploymentRecord>, StoreError> {
        deployments::read_open(&self.path)
    }

    fn for_each_deployment_device(
        &self,
        deployment_id: &str,
        each: &mut dyn FnMut(DeploymentDevice),
    ) -> Result<u64, StoreError> {
        match deployments::number_of(deployment_id) {
            Some(pk) => deployment_devices::for_each(&self.path, pk, each),
            None => Ok(0),
        }
    }
}

fn create(connection: &Connection, update: NewUpdate) -> Result<UpdateRecord, JobError> {
    let NewUpdate { name, version, body, created_at } = update;
    let inserted = connection
        .prepare_cached(
            "INSERT INTO updates (name, version, created_at, body) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (name, version) DO NOTHING",
        )?
        .execute(params![name, version, created_at.as_millis(), &body[..]])?;
    if inserted == 0 {
        let mut find = connection.prepare_cached("SELECT pk FROM updates WHERE name = ?1 AND version = ?2")?;
        let pk = find.query_row([&name, &version], |row| row.get(0))?;
        return Err(StoreError::UpdateExists { id: id_of(PREFIX, pk), name, version }.into());
    }
    Ok(UpdateRecord { id: id_of(PREFIX, connection.last_insert_rowid()), body, created_at })
}

fn to_update(row: &Row<'_>) -> rusqlite::Result<UpdateRecord> {
    Ok(UpdateRecord {
        id: id_of(PREFIX, row.get(0)?),
        created_at: time(row.get(1)?),
        body: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
    })
}

/// The id that people see of the row `pk`: `update-001`.
pub(super) fn id_of(prefix: &str, pk: i64) -> String {
    format!("{prefix}-{pk:03}")
}

/// The way back from [`id_of`]; `None` for any other spelling, so that a thing has one id.
pub(super) fn number_of(prefix: &str, id: &str) -> Option<i64> {
    let pk = id.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()?;
    (id_of(prefix, pk) == id).then_some(pk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_three_digits_or_more_and_one_spelling() {
        for (pk, id) in
            [(1, "update-001"), (999, "update-999"), (1_000, "update-1000"), (1 << 40, "update-1099511627776")]
        {
            assert_eq!(id_of(PREFIX, pk), id);
            assert_eq!(number_of(PREFIX, id), Some(pk));
        }
        for id in [
            "",
            "update-",
            "update-1",
            "update-0001",
            "update-+01",
            "deploy-001",
            "update-001 ",
            "update-99999999999999999999",
        ] {
            assert_eq!(number_of(PREFIX, id), None, "{id:?}");
        }
    }
}
