//! The command line: which part of fleetd to run. Everything else is in the library.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fleetd::config::Settings;
use fleetd::engine::ServerOptions;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes the heartbeats of very large device fleets, knows every device live, and keeps every acknowledged
/// heartbeat in ClickHouse exactly once.
#[derive(Parser)]
#[command(name = "fleetd", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    ///
    /// When it is ready, one line goes to standard output:
    ///
    ///     fleetd ready http=http://127.0.0.1:8080 clickhouse=http://127.0.0.1:8123
    ///
    /// Logs go to standard error; FLEETD_LOG sets their level (info, debug, fleetd=trace, …). The first start makes
    /// an admin key in DATA_DIR/admin.key, or takes FLEETD_ADMIN_KEY. SIGTERM or Ctrl-C stops it: it finishes what
    /// is in flight and writes out what it holds, within 10 s.
    ///
    /// Exit status: 0 stopped as asked, 1 failed, 2 a flag, variable or key of the file is wrong.
    #[command(verbatim_doc_comment)]
    Serve {
        /// TOML file with any of the settings below, named with _ for -
        #[arg(long, env = "FLEETD_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Run the embedded ClickHouse alone, speaking ClickHouse's HTTP protocol
    Clickhouse {
        /// Address and port; port 0 picks a free one
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8123")]
        listen: std::net::SocketAddr,
        /// Folder for its tables
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The library, libchdb.so [default: beside the program, then the user's cache]
        #[arg(long, env = "FLEETD_ENGINE_LIBRARY", value_name = "FILE")]
        library: Option<PathBuf>,
        /// Most memory that ClickHouse may take, in bytes
        #[arg(long, value_name = "BYTES")]
        memory_limit_bytes: Option<u64>,
        /// End when standard input ends: how `serve` runs it
        #[arg(long, hide = true)]
        supervised: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    fleetd::app::init_logging();
    match cli.command {
        Command::Serve { config, settings } => serve(config, *settings),
        Command::Clickhouse { listen, data_dir, library, memory_limit_bytes, supervised } => {
            clickhouse(ServerOptions { listen, data_dir, library, memory_limit_bytes, is_supervised: supervised })
        }
    }
}

fn serve(file: Option<PathBuf>, flags: Settings) -> ExitCode {
    let file = match file.as_deref().map(Settings::from_file).transpose() {
        Ok(settings) => settings.unwrap_or_default(),
        Err(error) => return failed(&error, 2),
    };
    let admin_key = std::env::var("FLEETD_ADMIN_KEY").ok().filter(|key| !key.is_empty());
    match flags.or(file).resolve(admin_key) {
        Ok(config) => match fleetd::app::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        },
        Err(error) => failed(&error, 2),
    }
}

fn clickhouse(options: ServerOptions) -> ExitCode {
    match fleetd::engine::run(options) {
        // It exits by itself: nothing of ClickHouse may be torn down while its threads run.
        Ok(never) => match never {},
        Err(error) => failed(&error, 1),
    }
}

/// Prints the error and what caused it on one line, and gives the exit status.
fn failed(error: &dyn std::error::Error, status: u8) -> ExitCode {
    let mut text = format!("fleetd: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("{text}");
    ExitCode::from(status)
}
