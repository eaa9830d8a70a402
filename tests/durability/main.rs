//! The promise of the whole server: a heartbeat that was acknowledged is in ClickHouse exactly once, whatever dies.
//!
//! The real program runs with a real ClickHouse under a simulated fleet, which remembers what was acknowledged; then
//! something is done to it that must cost nothing. What is random is drawn from a seed that each test prints;
//! `FLEETD_CHAOS_SEED` runs it again. `FLEETD_CHAOS_KILLS` is how often each of the killing tests kills (20; `make
//! chaos` takes more).
//!
//! The tests need root for the small disks of `full_disk`; `FLEETD_SKIP_MOUNT=1` leaves those out.
#[path = "../support/mod.rs"]
mod support;

mod absence;
mod audit;
mod clock;
mod damage;
mod full_disk;
mod grudge;
mod kill;
mod random;
mod rig;
mod stop;
