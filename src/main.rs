//! The program: reads the arguments and runs what they name.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fleetd::engine;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The embedded ClickHouse alone: its HTTP interface on a data directory.
    Clickhouse {
        /// Where to listen; port 0 picks a free one.
        #[arg(long, default_value = "127.0.0.1:8123")]
        listen: SocketAddr,
        /// Where ClickHouse keeps its data.
        #[arg(long, default_value = "./fleetd-data/clickhouse")]
        data_dir: PathBuf,
        /// The ClickHouse library, if it is not to be looked for.
        #[arg(long)]
        library: Option<PathBuf>,
        /// Most memory ClickHouse may take, in bytes.
        #[arg(long)]
        memory_limit_bytes: Option<u64>,
        /// End when standard input ends.
        #[arg(long, hide = true)]
        supervised: bool,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .init();
    let Task::Clickhouse { listen, data_dir, library, memory_limit_bytes, supervised } = Arguments::parse().command;
    let options = engine::ServerOptions { listen, data_dir, library, memory_limit_bytes, is_supervised: supervised };
    match engine::run(options) {
        Ok(never) => match never {},
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            tracing::error!("{text}");
            ExitCode::FAILURE
        }
    }
}
