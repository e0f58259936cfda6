//! Which connection a pinned key uses: its own one while anything of it is in flight, else the one its hash names.

use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Connection;

/// Keys share this many pins; a pin moves when nothing of all its keys is in flight.
const PINS: usize = 1024;

struct Pin {
    connection: Option<Arc<Connection>>,
    in_flight: usize,
}

pub(super) struct Pins(Box<[Mutex<Pin>]>);

impl Pins {
    pub(super) fn new() -> Self {
        Pins((0..PINS).map(|_| Mutex::new(Pin { connection: None, in_flight: 0 })).collect())
    }

    /// Takes the pin of `hash`; `wanted` names the connection of a pin that may move. Returns the pin's number.
    pub(super) fn take(&self, hash: u64, wanted: impl Fn(u64) -> Arc<Connection>) -> (usize, Arc<Connection>) {
        let number = (spread(hash) % PINS as u64) as usize;
        let mut pin = self.0[number].lock();
        if pin.in_flight > 0
            && let Some(connection) = &pin.connection
        {
            let connection = connection.clone();
            connection.join();
            pin.in_flight += 1;
            return (number, connection);
        }
        let connection = loop {
            let connection = wanted(number as u64);
            if connection.acquire() {
                break connection;
            }
            // Replaced just now, unless the whole pool is closed: then its requests fail by themselves.
            if connection.link.closed.is_cancelled() {
                connection.join();
                break connection;
            }
        };
        pin.connection = Some(connection.clone());
        pin.in_flight = 1;
        (number, connection)
    }

    pub(super) fn give_back(&self, number: usize) {
        let mut pin = self.0[number].lock();
        pin.in_flight = pin.in_flight.saturating_sub(1);
        if pin.in_flight == 0 {
            // An idle pin must not keep a retired connection alive.
            pin.connection = None;
        }
    }
}

/// Mixes the bits, so that hashes which differ only in their high bits spread as well.
pub(crate) fn spread(hash: u64) -> u64 {
    let mut mixed = hash ^ (hash >> 32);
    mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// Jump consistent hash (Lamping, Veach 2014): from n to n + 1 buckets only 1 / (n + 1) of the keys move.
pub(super) fn bucket(key: u64, buckets: usize) -> usize {
    let mut key = spread(key.wrapping_add(1));
    let (mut chosen, mut next) = (0i64, 0i64);
    while next < buckets as i64 {
        chosen = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((chosen + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    chosen as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_even_and_few_keys_move() {
        let mut counts = [0; 3];
        let mut moved = 0;
        for key in 0..PINS as u64 {
            counts[bucket(key, 3)] += 1;
            let (before, after) = (bucket(key, 3), bucket(key, 4));
            assert!(before == after || after == 3, "a key may move to the new bucket only");
            moved += usize::from(before != after);
        }
        assert!(counts.iter().all(|&count| (250..450).contains(&count)), "{counts:?}");
        assert!((150..360).contains(&moved), "{moved}");
    }
}
