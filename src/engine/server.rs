//! `fleetd clickhouse`: ClickHouse's HTTP interface over the library, and the life of its process.
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use http::{header, Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch, Semaphore};

use super::admission::Admission;
use super::body::{receive, AnswerBody};
use super::data_lock::DataLock;
use super::exception::{code, Exception};
use super::library::{Library, Parameters};
use super::request::Request;
use super::respond::{error_response, Facts, Responder};
use super::{config, locate, statement, EngineError};

/// Connections open at once. They cost little; the bound keeps a runaway client from taking all file descriptors,
/// which ClickHouse needs for its parts. Further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1_024;

/// How long running statements may go on after SIGTERM, and after the supervisor is gone. The supervisor itself
/// waits five seconds before it kills.
const DRAIN_ON_SIGNAL: Duration = Duration::from_secs(4);
const DRAIN_WITHOUT_SUPERVISOR: Duration = Duration::from_millis(500);

/// How long statements that were told to stop (KILL QUERY) may take to do so.
const DRAIN_AFTER_KILL: Duration = Duration::from_millis(500);

/// What `fleetd clickhouse` is told.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen; port 0 picks a free one, named in the ready line.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// The library, if it is not to be looked for.
    pub library: Option<PathBuf>,
    /// Most memory ClickHouse may take, in bytes; 4 GiB if not given.
    pub memory_limit_bytes: Option<u64>,
    /// Started by [`super::EngineProcess`]: end when standard input does, since then the supervisor is gone.
    pub is_supervised: bool,
}

/// Runs the engine until SIGTERM or SIGINT, then ends the process with status 0. Prints one line to standard output
/// when it answers.
///
/// # Errors
/// The library is missing or unusable, the data directory is held by another process, the address is taken.
pub fn run(options: ServerOptions) -> Result<Infallible, EngineError> {
    if options.is_supervised {
        die_with_parent();
    }
    let library = locate(options.library.as_deref())?;
    let lock = DataLock::acquire(&options.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(EngineError::Runtime)?;
    let listen_failed = |source| EngineError::Listen { address: options.listen, source };
    let listener = runtime.block_on(TcpListener::bind(options.listen)).map_err(listen_failed)?;
    let address = listener.local_addr().map_err(listen_failed)?;

    let memory_limit = options.memory_limit_bytes.unwrap_or(config::DEFAULT_MEMORY_LIMIT_BYTES);
    let arguments = config::prepare(&options.data_dir, memory_limit)
        .map_err(|source| EngineError::DataDir { path: options.data_dir.clone(), source })?;
    let engine = Library::start(&library, &arguments)?;
    let facts = facts(&engine).map_err(|exception| EngineError::FirstStatement(exception.to_string()))?;
    tracing::info!(version = facts.version, %address, library = %library.display(), "embedded clickhouse is ready");

    let is_loopback = address.ip().is_loopback();
    let server = Arc::new(Server { engine, facts: Arc::new(facts), admission: Admission::new(), is_loopback });
    let is_idle = runtime.block_on(serve(&server, listener, address, options.is_supervised))?;
    // Threads that still run a statement keep the server alive; they are left to the process's end.
    runtime.shutdown_background();
    match Arc::try_unwrap(server) {
        Ok(server) if is_idle => {
            server.engine.close();
            tracing::info!("embedded clickhouse is closed");
        }
        // ClickHouse's data is safe against a kill, so statements that do not stop do not hold up the end.
        _ => tracing::warn!("embedded clickhouse stops with statements still running"),
    }
    drop(lock);
    // Threads of the library outlive its shutdown, and its exit handlers would pull their memory away.
    // SAFETY: ends the process at once; nothing of this program is left to flush.
    unsafe { libc::_exit(0) }
}

/// Asks the kernel to kill this process when its parent dies. The supervisor's own thread is what counts as the
/// parent, and it lives as long as the supervisor. Elsewhere the end of standard input does it.
fn die_with_parent() {
    #[cfg(target_os = "linux")]
    // SAFETY: sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

fn facts(engine: &Library) -> Result<Facts, Exception> {
    let mut connection = engine.connect().map_err(|error| Exception::internal(&error.to_string()))?;
    let mut ask = |text: &str| {
        let output = connection.query(text.as_bytes(), "TSVRaw", &Parameters::default())?;
        Ok::<_, Exception>(String::from_utf8_lossy(output.as_ref()).trim().to_owned())
    };
    Ok(Facts {
        version: ask("SELECT version()")?,
        timezone: ask("SELECT serverTimezone()")?,
        display_name: ask("SELECT hostName()")?,
    })
}

struct Server {
    engine: Library,
    facts: Arc<Facts>,
    admission: Admission,
    is_loopback: bool,
}

/// Accepts until told to stop, then lets running statements finish. True when none is left.
async fn serve(
    server: &Arc<Server>,
    listener: TcpListener,
    address: SocketAddr,
    is_supervised: bool,
) -> Result<bool, EngineError> {
    let (stop, stopping) = watch::channel(());
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let orphaned = if is_supervised { end_of_standard_input() } else { std::future::pending().boxed() };
    tokio::pin!(orphaned);
    announce(address);

    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let patience = loop {
        tokio::select! {
            connection = accept(&listener, &places) => {
                let (stream, place) = connection;
                let task = connection_task(Arc::clone(server), stream, stopping.clone());
                tokio::spawn(async move {
                    task.await;
                    drop(place);
                });
            }
            _ = terminate.recv() => break DRAIN_ON_SIGNAL,
            _ = interrupt.recv() => break DRAIN_ON_SIGNAL,
            () = &mut orphaned => {
                tracing::warn!("the supervisor is gone, the engine stops");
                break DRAIN_WITHOUT_SUPERVISOR;
            }
        }
    };
    drop(listener);
    drop(stopping);
    let running = server.admission.running();
    if running > 0 {
        tracing::info!(running, "waiting for running statements");
    }
    // Tells every connection to end after its answer; `closed` below is when the last one did.
    let _ = stop.send(());
    if tokio::time::timeout(patience, server.admission.close_and_drain()).await.is_ok() {
        // Answers that are being written get the same moment; their statements are over.
        let _ = tokio::time::timeout(DRAIN_AFTER_KILL, stop.closed()).await;
        return Ok(true);
    }
    kill_statements(server);
    let is_idle = tokio::time::timeout(DRAIN_AFTER_KILL, server.admission.close_and_drain()).await.is_ok();
    let _ = tokio::time::timeout(DRAIN_AFTER_KILL, stop.closed()).await;
    Ok(is_idle)
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, EngineError> {
    tokio::signal::unix::signal(kind).map_err(EngineError::Runtime)
}

/// The ready line, for people and for the supervisor. Nobody may be reading it any more.
fn announce(address: SocketAddr) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "fleetd clickhouse ready http=http://{address}").and_then(|()| output.flush());
}

/// Completes when the supervisor closes its end of the pipe, which the system does when it dies.
fn end_of_standard_input() -> BoxFuture<'static, ()> {
    let (ended, end) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut ignored = [0_u8; 64];
        while matches!(std::io::stdin().read(&mut ignored), Ok(count) if count > 0) {}
        drop(ended);
    });
    async move {
        let _ = end.await;
    }
    .boxed()
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _peer)) => return (stream, place),
            Err(error) => {
                // Out of file descriptors, mostly: others must close first, so do not spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection_task(server: Arc<Server>, stream: TcpStream, mut stopping: watch::Receiver<()>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(answer(server, request).await) }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}

async fn answer(server: Arc<Server>, request: http::Request<Incoming>) -> Response<AnswerBody> {
    if let Some(refusal) = foreign_page(&server, &request) {
        return refusal;
    }
    let has_query = request.uri().query().is_some_and(|query| !query.is_empty());
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/ping" | "/replicas_status") => plain(StatusCode::OK, "Ok.\n"),
        // What ClickHouse answers to a bare GET.
        (&Method::GET | &Method::HEAD, "/") if !has_query => plain(StatusCode::OK, "Ok.\n"),
        (&Method::GET | &Method::HEAD | &Method::POST | &Method::PUT, "/" | "/query") => run_statement(server, request).await,
        (_, "/" | "/query" | "/ping") => plain(StatusCode::METHOD_NOT_ALLOWED, "Use GET or POST.\n"),
        _ => plain(
            StatusCode::NOT_FOUND,
            "There is nothing here. Use /ping for a health check, and / with a query as in ClickHouse's HTTP interface.\n",
        ),
    }
}

async fn run_statement(server: Arc<Server>, request: http::Request<Incoming>) -> Response<AnswerBody> {
    let (parts, body) = request.into_parts();
    let arrivals = receive(body);
    let parsed = match Request::parse(&parts) {
        Ok(parsed) => parsed,
        Err(exception) => return error_response(&exception, &server.facts, ""),
    };
    let query_id = parsed.query_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let permit = match server.admission.enter().await {
        Ok(permit) => permit,
        Err(exception) => return error_response(&exception, &server.facts, &query_id),
    };
    let (head, first) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let responder = Responder::new(Arc::clone(&server.facts), runtime, head, query_id.clone());
    let facts = Arc::clone(&server.facts);
    tokio::task::spawn_blocking(move || {
        statement::run(&server.engine, parsed, arrivals, responder);
        // Before the permit, so that an idle gate means that nobody holds the engine.
        drop(server);
        drop(permit);
    });
    match first.await {
        Ok(response) => response,
        Err(_dropped) => {
            error_response(&Exception::internal("The statement ended without an answer"), &facts, &query_id)
        }
    }
}

/// Ends what runs, for a stop that does not wait any longer.
fn kill_statements(server: &Server) {
    let killed = server.engine.connect().map_err(|error| error.to_string()).and_then(|mut connection| {
        connection
            .query(b"KILL QUERY WHERE 1 ASYNC", "Null", &Parameters::default())
            .map(drop)
            .map_err(|exception| exception.to_string())
    });
    if let Err(error) = killed {
        tracing::warn!(error, "running statements could not be stopped");
    }
}

/// There is no password on loopback, so a web page must not reach this port through its visitor's browser: not by a
/// request across origins, and not by a name that it points at 127.0.0.1.
fn foreign_page(server: &Server, request: &http::Request<Incoming>) -> Option<Response<AnswerBody>> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_local_name = |authority: &str| {
        let host = authority.parse::<http::uri::Authority>().map(|parsed| parsed.host().to_owned());
        host.is_ok_and(|host| {
            host.eq_ignore_ascii_case("localhost") || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
        })
    };
    let host = text(header::HOST).unwrap_or("");
    let origin = text(header::ORIGIN);
    let is_same_origin = origin.is_none_or(|origin| origin.split_once("://").is_some_and(|(_, rest)| rest == host));
    let is_known_name = !server.is_loopback || host.is_empty() || is_local_name(host);
    if is_same_origin && is_known_name {
        return None;
    }
    let message = "default: Not enough privileges. Requests of web pages from other sites are refused";
    let exception = Exception::new(code::ACCESS_DENIED, "ACCESS_DENIED", message);
    Some(error_response(&exception, &server.facts, ""))
}

fn plain(status: StatusCode, text: &'static str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    let content_type = http::HeaderValue::from_static("text/html; charset=UTF-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
