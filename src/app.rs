//! What runs, in which order it starts, and in which order it stops.
//!
//! Start: data directory, registry, journal, ClickHouse, writer, computed tables, device directory, artifacts, exports,
//! deployments, front door. Stop is the reverse: no new requests, then what is in flight, then what is in the journal, then ClickHouse, so that nothing is taken
//! that could not be kept.
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Actor as _;
use actix_rt::System;
use connectrpc_health::StaticChecker;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch;

use crate::actors::deployment::{self, Deployments};
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::DeviceEntry;
use crate::actors::presence::PresenceKeeper;
use crate::actors::sweeper::CommandSweeper;
use crate::analytics::export::{self, Exports, ExportsError};
use crate::analytics::{AnalystPool, AnswerRoom, OnlineCounts};
use crate::artifacts::{BlobError, BlobStore, DownloadUrls, StoreTarget, UrlsError};
use crate::auth::{load_or_create_admin_key, AdminKeyError};
use crate::config::{ClickHouseTarget, Config};
use crate::data_dir::{DataDir, DataDirError};
use crate::engine::{EngineError, EngineOptions, EngineProcess};
use crate::events::Events;
use crate::fleet::{Description, FleetQueries};
use crate::http::access::Access;
use crate::http::analytics_service::AnalyticsService;
use crate::http::binary_service::{BinariesError, BinaryService};
use crate::http::command_service::CommandCounters;
use crate::http::device_service::DeviceService;
use crate::http::front;
use crate::http::gateway::Gateway;
use crate::http::operations::Operations;
use crate::http::pages::{Tokens, TokensError};
use crate::http::rpc::{self, FleetRpc};
use crate::http::update_service::UpdateService;
use crate::ids::DeviceId;
use crate::observe;
use crate::presence::Past;
use crate::sampler;
use crate::store::{sqlite, DeviceRow, Store, StoreError};
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use crate::telemetry::journal::{self, Journal, JournalOptions};
use crate::telemetry::rollup::{self, Coverage, Positions, RollupHandle, RollupOptions};
use crate::telemetry::schema::{self, Retention, SchemaError};
use crate::telemetry::writer::{self, WriterHandle, WriterOptions};

/// How long after the front door is shut the journal's rest may take to reach ClickHouse. What does not make it
/// stays in the journal and goes out after the next start.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// How long the statement that computes a table may go on after the front door is shut. What is not finished then is
/// built again by the next start.
const ROLLUP_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How long deployments may take to save what they know. What they have not saved by then they know again after the next
/// start, as after a crash.
const DEPLOYMENTS_END_WITHIN: Duration = Duration::from_secs(1);

/// The whole stop, which a supervisor gives 10 s: the engine gets what the parts before it leave of this. The longest they
/// take is [`front::DRAIN_SECONDS`], [`DEPLOYMENTS_END_WITHIN`] and [`FLUSH_WITHIN`]: 8 s.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// How long a start waits for a ClickHouse that says nothing, before it serves without it.
const TABLES_PATIENCE: Duration = Duration::from_secs(3);

/// How often an absent ClickHouse is tried for its tables after the start.
const TABLES_RETRY: Duration = Duration::from_secs(2);

/// A second signal this soon after the first is taken for the same one.
const SAME_SIGNAL_WITHIN: Duration = Duration::from_secs(1);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("the registry of devices does not open")]
    Store(#[from] StoreError),
    #[error("page tokens cannot be made")]
    Tokens(#[from] TokensError),
    #[error("the artifact store does not open")]
    Artifacts(#[from] BlobError),
    #[error("the files of updates cannot be served")]
    Binaries(#[from] BinariesError),
    #[error("exports cannot be served")]
    Exports(#[from] ExportsError),
    #[error("download URLs cannot be signed")]
    Urls(#[from] UrlsError),
    #[error("no admin key")]
    AdminKey(#[from] AdminKeyError),
    #[error("the journal does not open")]
    Journal(#[from] journal::OpenError),
    #[error("the embedded ClickHouse does not start")]
    Engine(#[from] EngineError),
    #[error("the tables in ClickHouse are not as this version needs them")]
    Schema(#[from] SchemaError),
    #[error("the ClickHouse writer does not start")]
    Writer(#[from] writer::WriterError),
    #[error("the computed tables have no thread")]
    Rollup(#[source] std::io::Error),
    #[error("cannot listen on {address}; give another --listen")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot {operation}")]
    System { operation: &'static str, source: std::io::Error },
}

/// Logs go to standard error, at the level that `FLEETD_LOG` names.
pub fn init_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("FLEETD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second call, as tests make, keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

/// Runs the server until SIGTERM or SIGINT; prints the ready line to standard output.
pub fn run(config: Config) -> Result<(), AppError> {
    System::new().block_on(async move {
        let started = Instant::now();
        let mut stop = StopSignals::listen()?;
        let server = tokio::select! {
            server = Server::start(config) => server?,
            () = stop.wait() => {
                tracing::info!("told to stop before the start was over");
                return Ok(());
            }
        };
        println!("fleetd ready http=http://{} clickhouse={}", server.address, server.clickhouse_url);
        // A reader waits for this line; a closed standard output is no reason to stop.
        let _ = std::io::stdout().flush();
        tracing::info!(address = %server.address, took = ?started.elapsed(), "ready");
        stop.wait().await;
        tokio::select! {
            () = server.stop() => tracing::info!("stopped"),
            () = stop.wait_once_more() => tracing::warn!("told again to stop, stopping at once"),
        }
        Ok(())
    })
}

struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn listen() -> Result<Self, AppError> {
        let failed = |source| AppError::System { operation: "listen for signals", source };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// A person who presses Ctrl-C again means it; a supervisor that signals both the process and its group does not.
    async fn wait_once_more(&mut self) {
        let first = Instant::now();
        while first.elapsed() < SAME_SIGNAL_WITHIN {
            self.wait().await;
        }
    }
}

/// Everything that runs, in the order in which it was started.
struct Server {
    _data_dir: DataDir,
    store: Arc<dyn Store>,
    journal: Journal,
    engine: Option<EngineProcess>,
    writer: WriterHandle,
    rollups: RollupHandle,
    deployments: Deployments,
    exports: Exports,
    stopping: watch::Sender<bool>,
    health: Arc<StaticChecker>,
    front: actix_server::ServerHandle,
    address: SocketAddr,
    clickhouse_url: String,
}

impl Server {
    async fn start(config: Config) -> Result<Self, AppError> {
        let data_dir = DataDir::hold(&config.data_dir)?;
        // Taken first, so that an address in use is said before anything is started.
        let listener =
            TcpListener::bind(config.listen).map_err(|source| AppError::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(|source| AppError::Listen { address: config.listen, source })?;
        let admin = load_or_create_admin_key(data_dir.path(), config.admin_key.as_deref())?;
        let store = sqlite::open(data_dir.path())?;
        let (journal, recovery) = Journal::open(JournalOptions {
            dir: data_dir.join("journal"),
            sync: config.sync,
            segment_bytes: config.journal_segment_bytes,
            capacity_bytes: config.journal_capacity_bytes,
        })?;
        tracing::info!(?recovery, "journal opened");

        let (engine, clickhouse_url) = match &config.clickhouse {
            ClickHouseTarget::Server { url } => (None, url.clone()),
            ClickHouseTarget::Embedded { listen, library } => {
                let executable = std::env::current_exe()
                    .map_err(|source| AppError::System { operation: "find the path of this program", source })?;
                let options = EngineOptions {
                    library: library.clone(),
                    listen: *listen,
                    ..EngineOptions::new(executable, data_dir.join("clickhouse"))
                };
                let engine = EngineProcess::start(options).await?;
                let url = engine.url();
                (Some(engine), url)
            }
        };
        let clickhouse = ClickHouse::new(&ClickHouseConfig {
            database: config.clickhouse_database.clone(),
            cluster: config.clickhouse_cluster.clone(),
            user: config.clickhouse_user.clone(),
            password: config.clickhouse_password.clone(),
            ..ClickHouseConfig::new(&clickhouse_url)
        });
        let retention = config.retention;
        prepare_tables(&clickhouse, retention).await?;
        let options = WriterOptions { retention, ..WriterOptions::new(data_dir.path()) };
        let writer = writer::start(journal.clone(), clickhouse.clone(), options)?;

        let coverage = Coverage::default();
        let written = writer.clone();
        let parts = rollup::Parts {
            journal: journal.id(),
            positions: Box::new(move || {
                let status = written.status();
                Positions { committed: status.committed_seq, audited: status.audited_seq }
            }),
            clickhouse: clickhouse.clone(),
            coverage: coverage.clone(),
        };
        let options = RollupOptions { every: config.rollup_interval, retention };
        let rollups = rollup::start(parts, options).map_err(AppError::Rollup)?;
        let events = Events::new(journal.clone());
        let directory = DeviceDirectory::new(journal.clone(), events.clone(), config.heartbeat_interval);
        let registered = load_registry(&store, &directory)?;
        tracing::info!(registered, "registry loaded");
        let tokens = Tokens::load_or_create(&*store).await?;
        let commands = Arc::new(CommandCounters::default());
        CommandSweeper::new(store.clone()).start();
        PresenceKeeper::new(directory.clone(), events.clone(), store.clone()).start();
        let queries = FleetQueries::start(directory.fleet().clone())
            .map_err(|source| AppError::System { operation: "start the threads of queries", source })?;

        let (stopping, is_stopping) = watch::channel(false);
        let access = Arc::new(Access::new(admin, directory.clone(), store.clone(), config.rate_limits));
        let artifacts = match config.artifact_store {
            Some(url) => StoreTarget::Bucket(url),
            None => StoreTarget::Folder(data_dir.join("artifacts")),
        };
        let blobs = BlobStore::open(&artifacts).await?;
        let public_url = config.public_url.unwrap_or_else(|| format!("http://{address}"));
        let urls = DownloadUrls::load_or_create(&*store, &public_url).await?;
        let binaries =
            BinaryService::start(access.clone(), store.clone(), blobs.clone(), urls.clone(), is_stopping.clone())
                .await?;
        // Somebody else's ClickHouse is taken to have processors of its own.
        let pool_of = if engine.is_some() { AnalystPool::beside_ingest } else { AnalystPool::new };
        let pool = pool_of(clickhouse.clone());
        let room = AnswerRoom::default();
        let exports = Exports::start(export::Parts {
            store: store.clone(),
            queries: queries.clone(),
            pool: pool.clone(),
            blobs: blobs.clone(),
            writer: writer.clone(),
            stopping: is_stopping.clone(),
            retention: config.export_retention,
        })
        .await?;
        let deployments = Deployments::start(deployment::Parts {
            store: store.clone(),
            directory: directory.clone(),
            queries: queries.clone(),
            events: events.clone(),
            journal: journal.clone(),
            clickhouse,
            urls: urls.clone(),
        })
        .await?;
        let metrics = observe::metrics(observe::Sources {
            directory: directory.clone(),
            journal: journal.clone(),
            writer: writer.clone(),
            rollups: rollups.clone(),
            store: store.clone(),
            commands: commands.clone(),
            events: events.clone(),
            queries: queries.clone(),
            analysts: pool.clone(),
            transfers: binaries.counters.clone(),
            room: room.clone(),
            exports: exports.clone(),
            deployments: deployments.clone(),
            engine: engine.as_ref().map(EngineProcess::monitor),
        });
        sampler::start(metrics.clone(), journal.clone(), is_stopping.clone());
        let operations = Operations::new(metrics.clone(), observe::readiness(&journal, &writer, is_stopping.clone()));
        let updates = UpdateService {
            access: Arc::clone(&access),
            store: store.clone(),
            tokens: tokens.clone(),
            deployments: deployments.clone(),
            allow_http_artifacts: config.allow_http_artifacts,
        };
        let health_rules = Arc::new(config.health);
        let analytics = AnalyticsService {
            access: Arc::clone(&access),
            store: store.clone(),
            directory: directory.clone(),
            queries: queries.clone(),
            online: OnlineCounts::new(pool.clone(), queries.clone(), directory.clone(), writer.clone()),
            pool,
            room,
            health: Arc::clone(&health_rules),
            blobs,
            urls,
            feeder: binaries.feeder.clone(),
            exports: exports.clone(),
            coverage,
            writer: writer.clone(),
        };
        let devices = DeviceService {
            access,
            deployments: deployments.clone(),
            directory,
            store: store.clone(),
            metrics,
            commands,
            tokens,
            queries,
            events,
            stopping: is_stopping.clone(),
            health: Arc::clone(&health_rules),
        };
        let (companions, health) = rpc::companions();
        let rpc = FleetRpc::new(Arc::new(devices), Arc::new(updates), Arc::new(binaries), Arc::new(analytics));
        let gateway = Gateway::new(rpc, companions, Arc::new(operations));
        let front = front::serve(listener, config.workers, gateway, is_stopping)
            .map_err(|source| AppError::Listen { address, source })?;
        let handle = front.handle();
        actix_rt::spawn(front);
        Ok(Self {
            _data_dir: data_dir,
            store,
            journal,
            engine,
            writer,
            rollups,
            deployments,
            exports,
            stopping,
            health,
            front: handle,
            address,
            clickhouse_url,
        })
    }

    async fn stop(self) {
        tracing::info!("stopping");
        let began = Instant::now();
        self.stopping.send_replace(true);
        self.health.shutdown();
        self.front.stop(true).await;
        if tokio::time::timeout(DEPLOYMENTS_END_WITHIN, self.deployments.stop()).await.is_err() {
            tracing::warn!("deployments have not saved all in time, the next start takes them up as after a crash");
        }
        // None of the three needs another to go on.
        let (_, _, flushed) = tokio::join!(
            self.exports.stop(),
            self.rollups.shutdown(ROLLUP_ENDS_WITHIN),
            self.writer.shutdown(FLUSH_WITHIN),
        );
        if let Err(unsent) = flushed {
            tracing::warn!(%unsent, "not all of the journal is in clickhouse yet");
        }
        self.journal.close().await;
        if let Some(engine) = self.engine {
            engine.shutdown_within(STOP_WITHIN.saturating_sub(began.elapsed())).await;
        }
        drop(self.store);
    }
}

/// Brings the tables up to date; later, if ClickHouse does not answer now, since the journal holds what comes until
/// then. What ClickHouse does answer in time (no access, tables of a newer version) stops the start.
async fn prepare_tables(clickhouse: &ClickHouse, retention: Retention) -> Result<(), SchemaError> {
    let attempt = move |clickhouse: ClickHouse, after: Duration| async move {
        tokio::time::sleep(after).await;
        schema::migrate(&clickhouse, &retention).await
    };
    let mut waiting = Box::pin(attempt(clickhouse.clone(), Duration::ZERO));
    match tokio::time::timeout(TABLES_PATIENCE, &mut waiting).await {
        Ok(Err(error)) if error.is_no_answer() => {
            let cause = &error as &dyn std::error::Error;
            tracing::warn!(cause, "clickhouse does not answer, heartbeats wait for it in the journal");
            waiting.set(attempt(clickhouse.clone(), TABLES_RETRY));
        }
        Ok(outcome) => return outcome,
        // The attempt goes on: a statement that is half through is not given up.
        Err(_) => tracing::warn!("clickhouse has not answered yet, heartbeats wait for it in the journal"),
    }
    let clickhouse = clickhouse.clone();
    actix_rt::spawn(async move {
        while let Err(error) = waiting.as_mut().await {
            tracing::warn!(cause = &error as &dyn std::error::Error, "the tables are not ready yet");
            waiting.set(attempt(clickhouse.clone(), TABLES_RETRY));
        }
    });
    Ok(())
}

/// What a restart knows of a device's presence.
fn past_of(row: &DeviceRow<'_>) -> Past {
    match row.last_seen {
        None => Past::NeverSeen,
        Some(_) if row.is_offline => Past::Offline,
        Some(_) if row.is_late => Past::Late,
        Some(_) => Past::Seen,
    }
}

/// Makes every registered device known to the directory, and which of them have commands; no actor is made until a
/// device reports.
fn load_registry(store: &Arc<dyn Store>, directory: &DeviceDirectory) -> Result<u64, StoreError> {
    let registered = store.for_each_device(&mut |row| match DeviceId::parse(row.id) {
        Ok(id) => {
            let record = Description::try_from(&row).unwrap_or_else(|damage| {
                let cause = &damage as &dyn std::error::Error;
                tracing::error!(device_id = row.id, cause, "metadata or labels are damaged, left out of lists");
                Description::without_maps(&row)
            });
            directory.admit(DeviceEntry::new(id, row.key_hash, (&row).into()).with_past(past_of(&row)), &record);
        }
        Err(reason) => tracing::error!(id = row.id, %reason, "a registered id is not valid, left out"),
    })?;
    store.for_each_commanded_device(&mut |id| {
        if let Some(entry) = directory.find(id) {
            entry.commands.sent();
        }
    })?;
    Ok(registered)
}
