//! Chance, by a seed: the order of the targets, and samples in which every kind of device has its share.
use super::hash::{combine, mix, MixedMap};
use super::plan::{Exclusion, Target, Targets};

/// A target in the random order.
#[derive(Clone, Copy)]
pub struct Lot {
    key: u64,
    pub target: u32,
    /// Why it is left out, if it is.
    pub exclusion: Option<Exclusion>,
}

/// All targets in the random order of `seed`, whatever order they came in.
pub fn shuffled(
    targets: &impl Targets,
    seed: u64,
    mut exclusion: impl FnMut(&Target) -> Option<Exclusion>,
) -> Vec<Lot> {
    let seed = mix(seed);
    let rows = targets.rows().iter().zip(0..);
    let mut lots: Vec<Lot> =
        rows.map(|(row, target)| Lot { key: mix(row.id_hash ^ seed), target, exclusion: exclusion(row) }).collect();
    lots.sort_unstable_by_key(|lot| lot.key);
    // Two ids may have one hash: then the ids decide, not the order in which they came.
    for same in lots.chunk_by_mut(|a, b| a.key == b.key).filter(|same| same.len() > 1) {
        same.sort_unstable_by_key(|lot| targets.id(lot.target as usize));
    }
    lots
}

/// Targets that no wave has yet, in random order. Kept by value in that order, so that a wave costs one walk through
/// memory, not a jump for each device.
pub struct Candidates {
    left: Vec<Candidate>,
    /// For each stratum, what decides between strata that are equal otherwise.
    lots: Vec<u64>,
}

/// A target, and what waves are chosen by.
#[derive(Clone, Copy)]
pub struct Candidate {
    wave_matches: u64,
    pub target: u32,
    pub device_type: u32,
    /// Number of its stratum in `lots`.
    stratum: u32,
    pub is_online: bool,
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
    /// Those of the lots that are not left out.
    pub fn of(targets: &impl Targets, lots: &[Lot], seed: u64) -> Self {
        let rows = targets.rows();
        let mut numbers = MixedMap::default();
        let mut strata = Vec::new();
        let left = lots.iter().filter(|lot| lot.exclusion.is_none()).map(|lot| {
            let row = &rows[lot.target as usize];
            let key = combine(seed, row.stratum);
            let stratum = *numbers.entry(key).or_insert_with(|| {
                strata.push(key);
                (strata.len() - 1) as u32
            });
            let Target { wave_matches, device_type, is_online, .. } = *row;
            Candidate { wave_matches, target: lot.target, device_type, stratum, is_online }
        });
        Self { left: left.collect(), lots: strata }
    }

    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Draws `size` devices of those that match, or all of them, each stratum by its share; in random order. `filter` is
    /// the number of a wave.
    pub fn draw(&mut self, size: usize, filter: Option<usize>) -> Vec<Candidate> {
        let mut strata = self.seats(size, filter, false);
        let mut drawn = Vec::with_capacity(size.min(self.left.len()));
        self.left.retain(|candidate| {
            let seats = &mut strata[candidate.stratum as usize].seats;
            let is_drawn = *seats > 0 && candidate.matches(filter);
            if is_drawn {
                *seats -= 1;
                drawn.push(*candidate);
            }
            !is_drawn
        });
        drawn
    }

    /// As [`Self::draw`], but a device that is online goes before one that is not: within its stratum, where shares are
    /// rounded, and in the order of the result. A sample that cannot answer shows nothing.
    pub fn draw_online_first(&mut self, size: usize, filter: Option<usize>) -> Vec<Candidate> {
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
                drawn.push(*candidate);
            }
            !is_drawn
        });
        online.append(&mut others);
        online
    }

    /// All that are left, in random order.
    pub fn draw_all(&mut self) -> Vec<Candidate> {
        std::mem::take(&mut self.left)
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
