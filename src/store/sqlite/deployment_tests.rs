//! Updates and deployments against real files.
