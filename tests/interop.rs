//! Clients of other languages, as their makers ship them, against the real program: Google's gRPC for Python and
//! Connect's own client for Node.js, which know no proto file, since the server's reflection tells them everything; and
//! ClickHouse's own clients for both, against the embedded engine.
//!
//! Each language's packages are pinned beside its script and installed once into `target/interop`, by the language's
//! ordinary client; a change of the pins installs anew.
mod support;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{Options, Server, ADMIN_KEY};

/// One language: the files that pin its packages, and how they are installed into a folder.
struct Language {
    name: &'static str,
    pins: &'static [&'static str],
    install: fn(source: &Path, into: &Path),
}

impl Language {
    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(self.name)
    }

    /// The folder with the packages that the pins name; installed when it is not there yet.
    fn installed(&self) -> PathBuf {
        let source = self.source();
        let mut hash = DefaultHasher::new();
        for pin in self.pins {
            fs::read(source.join(pin)).unwrap_or_else(|error| panic!("{pin}: {error}")).hash(&mut hash);
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
        fs::create_dir_all(&cache).expect("a folder for packages");
        // Two runs at once must not install into each other; the lock goes with the process.
        let lock = File::create(cache.join(format!("{}.lock", self.name))).expect("a lock file");
        lock.lock().expect("the lock");
        let ready = cache.join(format!("{}-{:016x}", self.name, hash.finish()));
        let done = ready.join("installed");
        if !done.exists() {
            // What a run that was killed left behind is not to be trusted.
            let _ = fs::remove_dir_all(&ready);
            fs::create_dir_all(&ready).expect("a folder for packages");
            (self.install)(&source, &ready);
            File::create(done).expect("a mark that it is whole");
        }
        ready
    }
}

fn install_python(source: &Path, into: &Path) {
    run(Command::new("python3").args(["-m", "venv"]).arg(into));
    run(Command::new(into.join("bin/pip"))
        .args(["install", "--quiet", "--requirement"])
        .arg(source.join("requirements.txt")));
}

fn install_node(source: &Path, into: &Path) {
    for name in ["package.json", "package-lock.json", ".npmrc"] {
        fs::copy(source.join(name), into.join(name)).expect("a copy of the pins");
    }
    run(Command::new("npm").args(["ci", "--ignore-scripts", "--no-fund", "--no-audit"]).current_dir(into));
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// Default limits for devices; none for anonymous callers, since the scripts make many calls without a key.
fn server() -> Server {
    Server::with(Options::default().env("FLEETD_RATE_LIMIT_ANONYMOUS", "0"))
}

fn python() -> Language {
    Language { name: "python", pins: &["requirements.txt"], install: install_python }
}

#[test]
fn a_server_that_stops_tells_who_watches_its_health() {
    let packages = python().installed();
    let mut server = server();
    let mut watch = Command::new(packages.join("bin/python"))
        .arg(python().source().join("watch.py"))
        .arg(server.http().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a watch");
    let mut told = BufReader::new(watch.stdout.take().expect("its output")).lines().map_while(Result::ok);
    assert_eq!(told.next().as_deref(), Some("SERVING"));
    assert_eq!(server.sigterm(), Some(0));
    assert_eq!(told.next().as_deref(), Some("NOT_SERVING"));
    assert!(watch.wait().expect("its end").success());
}

#[test]
fn googles_grpc_client_for_python_is_served() {
    let python = python();
    let packages = python.installed();
    let server = server();
    let script = python.source().join("interop.py");
    run(Command::new(packages.join("bin/python")).arg(script).arg(server.http().to_string()).arg(ADMIN_KEY));
}

#[test]
fn clickhouses_own_client_for_python_reads_and_writes_the_embedded_engine() {
    let python = python();
    let packages = python.installed();
    let server = server();
    let (host, port) = (server.clickhouse().ip().to_string(), server.clickhouse().port().to_string());
    run(Command::new(packages.join("bin/python")).arg(python.source().join("clickhouse.py")).arg(host).arg(port));
}

/// The folder with Node's packages, and the scripts beside them: modules are found from where a script lies.
fn node(scripts: &[&str]) -> PathBuf {
    let pins = &["package.json", "package-lock.json", ".npmrc"];
    let node = Language { name: "node", pins, install: install_node };
    let packages = node.installed();
    for script in scripts {
        fs::copy(node.source().join(script), packages.join(script)).expect("a copy of the script");
    }
    packages
}

#[test]
fn clickhouses_own_client_for_node_reads_and_writes_the_embedded_engine() {
    let packages = node(&["clickhouse.js"]);
    let server = server();
    run(Command::new("node").arg(packages.join("clickhouse.js")).arg(format!("http://{}", server.clickhouse())));
}

#[test]
fn connects_own_client_for_node_is_served_in_every_protocol() {
    let packages = node(&["interop.js", "reflection.js"]);
    let server = server();
    let url = format!("http://{}", server.http());
    run(Command::new("node").arg(packages.join("interop.js")).arg(url).arg(ADMIN_KEY));
}
