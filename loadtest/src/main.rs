//! The program `fleetd-loadtest`: reads the command line, runs, prints one line of JSON, and says by its exit status
//! whether anything was lost.
mod cli;
mod progress;
mod rollout;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fleetd_loadtest::compare::{self, CompareOptions, Round};
use fleetd_loadtest::{default_keys_path, verify, ClickHouse, Extras, Fleet, FleetOptions, Load, LoadError, Report};

use crate::cli::{Cli, CompareArgs, ProgressArg, ProtocolArg, RunArgs, Sub};
use crate::progress::Display;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something was lost; the JSON line says what.
const EXIT_LOST: u8 = 1;

/// There was nothing to measure: the server or ClickHouse could not be reached or refused the set-up.
const EXIT_UNREACHABLE: u8 = 3;

/// How often the display is brought up to date and an interrupt is noticed.
const WATCH_STEP: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Sub::Bare { listen }) => compare::bare::serve(listen).map(|()| true),
        Some(Sub::Compare(args)) => block_on(run_compare(args)),
        Some(Sub::Rollout(args)) => block_on(rollout::run(*args)),
        None => block_on(run_load(cli.run)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_LOST),
        Err(error) => {
            eprint!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                eprint!(": {source}");
                cause = source.source();
            }
            eprintln!();
            ExitCode::from(EXIT_UNREACHABLE)
        }
    }
}

/// The threads that matter are the generators'; this one waits for them.
fn block_on<T>(work: impl std::future::Future<Output = Result<T, LoadError>>) -> Result<T, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| LoadError::Io { operation: "make a runtime".to_owned(), source })?;
    runtime.block_on(work)
}

async fn run_load(args: RunArgs) -> Result<bool, LoadError> {
    let clickhouse = ClickHouse {
        target: args.clickhouse_url.clone(),
        database: args.clickhouse_database.clone(),
        user: args.clickhouse_user.clone(),
        password: args.clickhouse_password.clone(),
    };
    if args.verify {
        // Better now than after the run.
        clickhouse.ping().await?;
    }
    let options = FleetOptions {
        target: args.url.clone(),
        admin_key: args.key.clone(),
        protocol: args.protocol.into(),
        devices: args.devices,
        id_prefix: args.id_prefix.clone(),
        keys: args
            .id_prefix
            .as_ref()
            .map(|prefix| args.keys.clone().unwrap_or_else(|| default_keys_path(&args.url, prefix))),
    };
    let mut display = Display::new(args.progress == ProgressArg::Auto);
    display.begin_registering(args.devices);
    let fleet = Fleet::register(&options, |registered| display.registered(registered)).await?;

    let load = load(&args);
    warn_about(&load, &fleet);
    let run = fleet.start(&load)?;
    display.begin_heartbeats(args.warmup + args.duration);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut was_interrupted = false;
    while !run.progress().is_finished {
        tokio::select! {
            () = tokio::time::sleep(WATCH_STEP) => display.heartbeats(&run.progress()),
            _ = &mut interrupt, if !was_interrupted => {
                was_interrupted = true;
                run.stop();
            }
        }
    }
    let (fleet, mut report) = run.finish().await?;
    display.end();

    if args.verify {
        display.begin_verifying(report.acked);
        report.verified = Some(verify(&fleet.ledger(), &clickhouse, args.verify_timeout).await?);
        display.end();
    }
    explain(&report, was_interrupted);
    print_json(&report)?;
    Ok(report.is_clean())
}

fn load(args: &RunArgs) -> Load {
    let connections = args.connections.unwrap_or(if args.protocol == ProtocolArg::Grpc { 8 } else { 64 });
    Load {
        protocol: args.protocol.into(),
        connections,
        streams: args.streams,
        threads: args.threads.unwrap_or_else(cli::default_threads),
        rate: args.rate,
        warmup: args.warmup,
        duration: Some(args.duration),
        timeout: args.timeout,
        keep_ledger: args.verify,
        take_updates: args.take_updates,
        extras: Extras { processes: args.processes, metrics: args.metrics, all_readings: args.all_readings },
    }
}

fn warn_about(load: &Load, fleet: &Fleet) {
    let streams = if load.protocol == fleetd_loadtest::Protocol::Grpc { load.streams } else { 1 };
    let wanted = load.connections.saturating_mul(streams);
    if wanted > fleet.len() {
        eprintln!(
            "warning: a device waits for its answer before it reports again, so {} devices keep at most {} of {wanted} \
             heartbeats in flight; raise --devices",
            fleet.len(),
            fleet.len(),
        );
    }
}

fn explain(report: &Report, was_interrupted: bool) {
    if was_interrupted {
        eprintln!("interrupted: the figures are of the {} s until then", report.duration_seconds);
    }
    if report.ledger_full {
        eprintln!("warning: the run ended early because --verify can remember no more heartbeats; shorten --duration");
    }
    if report.unsent > 0 {
        eprintln!(
            "warning: {} heartbeats were due and could not be sent; the server is slower than --rate, or --connections \
             are too few for its latency",
            report.unsent
        );
    }
    if report.acked == 0 && report.rejected.contains_key("UNAUTHENTICATED") {
        eprintln!("warning: the server knows none of the devices' keys; delete the --keys file, or change --id-prefix");
    }
    for example in report.verified.iter().flat_map(|verdict| &verdict.examples) {
        eprintln!("verify: {example}");
    }
}

async fn run_compare(args: CompareArgs) -> Result<bool, LoadError> {
    let own = std::env::current_exe()
        .map_err(|source| LoadError::Io { operation: "find this program's own file".to_owned(), source })?;
    let beside: PathBuf = own.with_file_name(format!("fleetd{}", std::env::consts::EXE_SUFFIX));
    let options = CompareOptions {
        server: args.server.unwrap_or(beside),
        generator: own,
        work_dir: args.work_dir.unwrap_or_else(std::env::temp_dir),
        devices: args.devices,
        rounds: args.rounds,
        warmup: args.warmup,
        duration: args.duration,
        threads: args.threads.unwrap_or_else(cli::default_threads),
    };
    eprintln!("round  case     heartbeats/s   p50 ms   p99 ms   cpu s: server  engine  generator  after  idle before");
    let comparison = compare::run(&options, print_round).await?;
    eprintln!(
        "median          bare {:>8.0}   connect {:>8.0}   grpc {:>8.0}",
        comparison.bare, comparison.connect, comparison.grpc
    );
    eprintln!("connect / bare  {:.3}   (to reach: 0.75)", comparison.connect_to_bare);
    eprintln!("grpc / connect  {:.3}   (to reach: 1.6)", comparison.grpc_to_connect);
    print_json(&comparison)?;
    Ok(comparison.is_clean())
}

fn print_round(round: &Round) {
    eprintln!(
        "{:>5}  {:<7}  {:>12.0}  {:>7.2}  {:>7.2}  {:>14.2}  {:>6.2}  {:>9.2}  {:>5.2}  {}{}",
        round.round,
        round.case,
        round.heartbeats_per_second,
        round.p50_ms,
        round.p99_ms,
        round.server_cpu_seconds,
        round.engine_cpu_seconds,
        round.generator_cpu_seconds,
        round.settle_cpu_seconds,
        if round.others_idle { "yes" } else { "NO" },
        if round.rejected + round.errors > 0 {
            format!("  {} refused, {} broken", round.rejected, round.errors)
        } else {
            String::new()
        },
    );
}

fn print_json(value: &impl serde::Serialize) -> Result<(), LoadError> {
    use std::io::Write;
    let failed = |source| LoadError::Io { operation: "print the result".to_owned(), source };
    let line = serde_json::to_string(value).map_err(|error| failed(error.into()))?;
    writeln!(std::io::stdout(), "{line}").map_err(failed)
}
