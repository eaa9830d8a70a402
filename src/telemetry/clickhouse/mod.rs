//! The handle on ClickHouse: where it is, how long to wait for it, and what its failures mean for the caller.
//!
//! Everything goes over HTTP, nearly all through the `clickhouse` crate (`stream.rs` says what does not), whether the server
//! is the embedded engine or a cluster.
//! Values in a query are always bound parameters; table and column names come from [`Table`](super::row::Table).
pub mod cluster;
mod error;
mod id_list;
mod stream;

use std::time::Duration;

use bytes::Bytes;
use clickhouse::query::Query;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;

pub use cluster::Cluster;
pub use error::{ClickHouseError, ErrorClass};
pub use id_list::IdList;
pub use stream::{ByteStream, StreamError};

use stream::Door;

/// A connection attempt that takes longer than this on a network that works is a dead host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// ClickHouse closes idle connections after 3 s by default (`keep_alive_timeout`; 30 s since 24.x): being first avoids
/// the race in which a request is written into a connection that the server is closing.
const POOL_IDLE: Duration = Duration::from_secs(2);

/// Where ClickHouse is and how to log in.
#[derive(Clone)]
pub struct ClickHouseConfig {
    /// `http://host:port`.
    pub url: String,
    pub database: String,
    /// `None`: a single server.
    pub cluster: Option<Cluster>,
    pub user: Option<String>,
    pub password: Option<String>,
    /// For one query, its result included.
    pub query_timeout: Duration,
    /// For one insert, from its first byte to the acknowledgement; ClickHouse is told to give up at the same time.
    pub insert_timeout: Duration,
}

impl ClickHouseConfig {
    pub const DEFAULT_DATABASE: &'static str = "fleetd";

    /// The defaults for the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            database: Self::DEFAULT_DATABASE.into(),
            cluster: None,
            user: None,
            password: None,
            query_timeout: Duration::from_secs(30),
            insert_timeout: Duration::from_secs(30),
        }
    }
}

/// Leaves out the password, and whatever of the kind the URL may carry.
impl std::fmt::Debug for ClickHouseConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseConfig")
            .field("url", &self.url.rsplit_once('@').map_or(self.url.as_str(), |(_, host)| host))
            .field("database", &self.database)
            .field("cluster", &self.cluster)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("query_timeout", &self.query_timeout)
            .field("insert_timeout", &self.insert_timeout)
            .finish()
    }
}

/// A cheap, cloneable handle on one database. Clones share one pool of connections.
#[derive(Clone, Debug)]
pub struct ClickHouse {
    client: clickhouse::Client,
    door: Door,
    database: String,
    cluster: Option<Cluster>,
    query_timeout: Duration,
    insert_timeout: Duration,
}

impl ClickHouse {
    /// Makes the handle; nothing is sent yet.
    pub fn new(config: &ClickHouseConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let door = Door {
            http: HyperClient::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector.clone()),
            url: config.url.clone(),
            user: config.user.clone(),
            password: config.password.clone(),
        };
        let http = HyperClient::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector);
        let mut client = clickhouse::Client::with_http_client(http)
            .with_url(&config.url)
            .with_database(&config.database)
            // A row's bytes cross a loopback or a data-centre network: compressing them costs more than it saves.
            .with_compression(clickhouse::Compression::None)
            .with_product_info("fleetd", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &config.user {
            client = client.with_user(user);
        }
        if let Some(password) = &config.password {
            client = client.with_password(password);
        }
        if config.cluster.is_some() {
            client = cluster::SETTINGS.iter().fold(client, |client, (name, value)| client.with_setting(*name, *value));
        }
        Self {
            client,
            door,
            database: config.database.clone(),
            cluster: config.cluster.clone(),
            query_timeout: config.query_timeout,
            insert_timeout: config.insert_timeout,
        }
    }

    /// The same, with more or less patience for queries.
    #[must_use]
    pub fn with_query_timeout(self, query_timeout: Duration) -> Self {
        Self { query_timeout, ..self }
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// The cluster that the tables are spread over, if they are.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// A query on this database, sent as it is; bind its values with [`Query::param`], run it with [`Self::rows`] or
    /// [`Self::execute`], which add the time-out.
    pub fn query(&self, sql: &str) -> Query {
        self.client.query_raw(sql)
    }

    /// As [`Self::query`], when this database may not be there yet.
    pub fn query_outside(&self, sql: &str) -> Query {
        self.client.clone().with_database("default").query_raw(sql)
    }

    /// Runs a query and collects its rows, which must be few.
    pub async fn rows<T>(&self, operation: &'static str, query: Query) -> Result<Vec<T>, ClickHouseError>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        let answer = tokio::time::timeout(self.query_timeout, query.fetch_all::<T>()).await;
        answer
            .unwrap_or(Err(clickhouse::error::Error::TimedOut))
            .map_err(|source| ClickHouseError::new(operation, source))
    }

    /// Runs a statement that answers nothing.
    pub async fn execute(&self, operation: &'static str, query: Query) -> Result<(), ClickHouseError> {
        let answer = tokio::time::timeout(self.query_timeout, query.execute()).await;
        answer
            .unwrap_or(Err(clickhouse::error::Error::TimedOut))
            .map_err(|source| ClickHouseError::new(operation, source))
    }

    /// Runs a statement and gives its answer piece by piece, as fast as it is taken; for answers of any length. `sql` names
    /// its FORMAT, and `parameters` are the values of `{name:Type}` in it.
    ///
    /// # Errors
    /// See [`StreamError`]; after the first piece they come from [`ByteStream::next`].
    pub async fn stream(
        &self,
        sql: String,
        settings: &[(&str, &str)],
        parameters: &[(String, String)],
    ) -> Result<ByteStream, StreamError> {
        let of_cluster = self.cluster.iter().flat_map(|_| cluster::SETTINGS);
        let settings: Vec<_> = of_cluster.chain(settings.iter().copied()).collect();
        self.door.stream(&self.database, sql, &settings, parameters).await
    }

    /// Creates the database if it is missing: the one statement that cannot name it as its own.
    pub async fn create_database(&self) -> Result<(), ClickHouseError> {
        let on = self.cluster.as_ref().map(Cluster::clause).unwrap_or_default();
        let sql = format!("CREATE DATABASE IF NOT EXISTS {{name:Identifier}}{on}");
        let query = self.query_outside(&sql).param("name", &self.database);
        self.execute("create the database", query).await
    }

    /// Sends one insert of finished rows. `sql` is complete up to and including its FORMAT.
    ///
    /// An error does not say that nothing was stored, unless its class does.
    pub async fn insert(&self, sql: &str, rows: Bytes) -> Result<(), ClickHouseError> {
        let seconds = self.insert_timeout.as_secs().max(1).to_string();
        let mut insert = self
            .client
            .insert_formatted_with(sql)
            // ClickHouse 26 buffers inserts by default, and then acknowledges before a part exists.
            .with_setting("async_insert", "0")
            .with_setting("max_execution_time", seconds)
            // A clock that jumps may spread a batch over many days; refusing it would stop the journal for ever.
            .with_setting("max_partitions_per_insert_block", "0");
        let sent = async {
            insert.send(rows).await?;
            insert.end().await
        };
        let answer = tokio::time::timeout(self.insert_timeout, sent).await;
        answer
            .unwrap_or(Err(clickhouse::error::Error::TimedOut))
            .map_err(|source| ClickHouseError::new("insert", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_prints_without_its_secrets() {
        let mut config = ClickHouseConfig::new("http://user:hunter2@db:8123");
        config.password = Some("hunter3".into());
        let printed = format!("{config:?} {:?}", ClickHouse::new(&config));
        assert!(!printed.contains("hunter"), "{printed}");
    }
}
