//! Chance, by a seed: the order of the targets, and samples in which every kind of device has its share.
use std::collections::HashMap;

use super::hash::{combine, mix};
use super::plan::{Target, Targets};

/// The numbers of all targets in the random order of `seed`, whatever order they came in.
pub fn shuffled(targets: &impl Targets, seed: u64) -> Vec<u32> {
    let seed = mix(seed);
    let mut keyed: Vec<(u64, u32)> =
        targets.rows().iter().zip(0..).map(|(target, at)| (mix(target.id_hash ^ seed), at)).collect();
    // Two ids may have one hash: then the ids decide, not the order in which they came.
    keyed.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| targets.id(a.1 as usize).cmp(targets.id(b.1 as usize))));
    keyed.into_iter().map(|(_, at)| at).collect()
}

/// Targets that no wave has yet, in random order. Kept by value in that order, so that a wave costs one walk through
/// memory, not a jump for each device.
pub struct Candidates {
    left: Vec<Candidate>,
    /// For each stratum, what decides between strata that are equal otherwise.
    lots: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Candidate {
    wave_matches: u64,
    target: u32,
    /// Number of its stratum in `lots`.
    stratum: u32,
    is_online: bool,
}

impl Candidate {
    fn matches(&self, filter: Option<usize>) -> bool {
        filter.is_none_or(|wave| self.wave_matches >> wave & 1 == 1)
    }
}

/// One stratum while a sample is drawn.
#[derive(Clone, Copy, Default)]
struct Stratum {
    devices: u64,
    online: u64,
    /// Devices that the sample still takes from it.
    seats: u64,
}

impl Candidates {
    /// `chosen` are numbers of targets, in random order.
    pub fn of(targets: &impl Targets, chosen: &[u32], seed: u64) -> Self {
        let mut numbers = HashMap::new();
        let mut lots = Vec::new();
        let rows: &[Target] = targets.rows();
        let left = chosen.iter().map(|&target| {
            let row = &rows[target as usize];
            let stratum = *numbers.entry(row.stratum).or_insert_with(|| {
                lots.push(combine(seed, row.stratum));
                (lots.len() - 1) as u32
            });
            Candidate { wave_matches: row.wave_matches, target, stratum, is_online: row.is_online }
        });
        Self { left: left.collect(), lots }
    }

    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Draws `size` devices of those that match, or all of them, each stratum by its share; in random order. `filter` is
    /// the number of a wave.
    pub fn draw(&mut self, size: usize, filter: Option<usize>) -> Vec<u32> {
        let mut strata = self.seats(size, filter, false);
        let mut drawn = Vec::with_capacity(size.min(self.left.len()));
        self.left.retain(|candidate| {
            let seats = &mut strata[candidate.stratum as usize].seats;
            let is_drawn = *seats > 0 && candidate.matches(filter);
            if is_drawn {
                *seats -= 1;
                drawn.push(candidate.target);
            }
            !is_drawn
        });
        drawn
    }

    /// As [`Self::draw`], but a device that is online goes before one that is not: within its stratum, where shares are
    /// rounded, and in the order of the result. A sample that cannot answer shows nothing.
    pub fn draw_online_first(&mut self, size: usize, filter: Option<usize>) -> Vec<u32> {
        let mut strata = self.seats(size, filter, true);
        for stratum in &mut strata {
            // What its online devices cannot fill is left for the others.
            let online = stratum.seats.min(stratum.online);
            (stratum.seats, stratum.online) = (stratum.seats - online, online);
        }
        let (mut online, mut others) = (Vec::new(), Vec::new());
        self.left.retain(|candidate| {
            let stratum = &mut strata[candidate.stratum as usize];
            let (seats, drawn) = match candidate.is_online {
                true => (&mut stratum.online, &mut online),
                false => (&mut stratum.seats, &mut others),
            };
            let is_drawn = *seats > 0 && candidate.matches(filter);
            if is_drawn {
                *seats -= 1;
                drawn.push(candidate.target);
            }
            !is_drawn
        });
        online.append(&mut others);
        online
    }

    /// All that are left, in random order.
    pub fn draw_all(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.left).into_iter().map(|candidate| candidate.target).collect()
    }

    /// How many devices each stratum gives to a sample: its share rounded down, and one more for those with the largest
    /// remainders (Hamilton's method) until the sample is full.
    fn seats(&self, size: usize, filter: Option<usize>, prefers_online: bool) -> Vec<Stratum> {
        let mut strata = vec![Stratum::default(); self.lots.len()];
        for candidate in self.left.iter().filter(|candidate| candidate.matches(filter)) {
            let stratum = &mut strata[candidate.stratum as usize];
            stratum.devices += 1;
            stratum.online += u64::from(candidate.is_online);
        }
        let all: u64 = strata.iter().map(|stratum| stratum.devices).sum();
        let size = (size as u64).min(all);
        let mut open = size;
        // Those with a remainder: whether an online device would take the seat, the remainder, the lot, the stratum.
        let mut remainders = Vec::new();
        for (at, stratum) in strata.iter_mut().enumerate().filter(|(_, stratum)| stratum.devices > 0) {
            // Both factors are below 2^32.
            let share = size * stratum.devices;
            stratum.seats = share / all;
            open -= stratum.seats;
            let remainder = share % all;
            if remainder > 0 {
                let is_online = prefers_online && stratum.online > stratum.seats;
                remainders.push((is_online, remainder, self.lots[at], at));
            }
        }
        // The largest first. There are more remainders than open seats: each is less than a seat.
        let open = usize::try_from(open).unwrap_or(usize::MAX).min(remainders.len());
        if open > 0 && open < remainders.len() {
            remainders.select_nth_unstable_by(open, |a, b| b.cmp(a));
        }
        for (.., at) in &remainders[..open] {
            strata[*at].seats += 1;
        }
        strata
    }
}
