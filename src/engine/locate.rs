//! Finds the ClickHouse library on this machine, or says where it looked and how to get it.
use std::env;
use std::path::{Path, PathBuf};

/// The pinned release of the library; `scripts/fetch-engine.sh` names the same.
pub const ENGINE_VERSION: &str = "26.7.3-stable.1";

/// File name of the library in the package, on every platform (also on macOS).
const LIBRARY_FILE: &str = "libchdb.so";

/// No library, and every place that was tried.
#[derive(Debug, thiserror::Error)]
#[error(
    "the ClickHouse library was not found; looked in: {}. Run `make engine` to fetch it, \
     or use a ClickHouse of your own with --clickhouse-url",
    places(tried)
)]
pub struct LocateError {
    pub tried: Vec<PathBuf>,
}

fn places(tried: &[PathBuf]) -> String {
    tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The library's path: `explicit` if given (and then nothing else), else `FLEETD_ENGINE_LIBRARY`, else beside this
/// executable, else the cache folder that `make engine` fills.
///
/// # Errors
/// [`LocateError`] with every path that was tried, when none of them is a file.
pub fn locate(explicit: Option<&Path>) -> Result<PathBuf, LocateError> {
    let named = explicit.map(Path::to_path_buf).or_else(|| non_empty_variable("FLEETD_ENGINE_LIBRARY"));
    let tried = match named {
        Some(path) => vec![path],
        None => beside_executable().into_iter().chain(cache_dir().map(|folder| folder.join(LIBRARY_FILE))).collect(),
    };
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(LocateError { tried }),
    }
}

fn beside_executable() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.join(LIBRARY_FILE))
}

/// `FLEETD_CACHE_DIR`, else the XDG cache folder, as the fetch script resolves it.
fn cache_dir() -> Option<PathBuf> {
    let base = non_empty_variable("FLEETD_CACHE_DIR")
        .or_else(|| non_empty_variable("XDG_CACHE_HOME").map(|folder| folder.join("fleetd")))
        .or_else(|| non_empty_variable("HOME").map(|home| home.join(".cache").join("fleetd")))?;
    Some(base.join(format!("engine-{ENGINE_VERSION}")))
}

fn non_empty_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_path_is_the_only_place_looked_at() {
        let error = locate(Some(Path::new("/nowhere/libchdb.so"))).expect_err("no such file");
        assert_eq!(error.tried, [PathBuf::from("/nowhere/libchdb.so")]);
    }

    #[test]
    fn the_error_says_what_to_do() {
        let text = locate(Some(Path::new("/nowhere/libchdb.so"))).expect_err("no such file").to_string();
        for needed in ["/nowhere/libchdb.so", "make engine", "--clickhouse-url"] {
            assert!(text.contains(needed), "{text}");
        }
    }

    #[test]
    fn an_explicit_file_is_taken() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        assert_eq!(locate(Some(file.path())).expect("it exists"), file.path());
    }

    #[test]
    fn the_fetch_script_pins_the_same_version() {
        let script = include_str!("../../scripts/fetch-engine.sh");
        assert!(script.contains(&format!("VERSION={ENGINE_VERSION}\n")), "versions differ");
    }
}
