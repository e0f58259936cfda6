//! What one user published and got.

use hashbrown::HashMap;

/// Numbers from 0, as bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers(Vec<u64>);

impl Numbers {
    /// Whether it was not there before.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// How many are here and in `other`.
    pub(crate) fn within(&self, other: &Numbers) -> u64 {
        self.0.iter().zip(&other.0).map(|(here, there)| u64::from((here & there).count_ones())).sum()
    }

    /// How many are here and not in `other`.
    pub(crate) fn without(&self, other: &Numbers) -> u64 {
        let other = other.0.iter().chain(std::iter::repeat(&0));
        self.0.iter().zip(other).map(|(here, there)| u64::from((here & !there).count_ones())).sum()
    }
}

/// What one user published and got.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) user: usize,
    /// Whether it was ever connected and subscribed.
    pub(crate) joined: bool,
    /// Its own publications that were acknowledged.
    pub(crate) acknowledged: Numbers,
    /// By publisher: what arrived.
    pub(crate) received: HashMap<u32, Received>,
    pub(crate) doubled: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) numbers: Numbers,
    /// Those that came behind a later one.
    pub(crate) late: Numbers,
    /// One more than the highest number.
    next: u32,
}

impl Book {
    pub(crate) fn new(user: usize) -> Self {
        Self { user, joined: false, acknowledged: Numbers::default(), received: HashMap::new(), doubled: 0 }
    }

    /// A publication arrived.
    pub(crate) fn enter(&mut self, publisher: u32, number: u32) {
        let received = self.received.entry(publisher).or_default();
        if !received.numbers.insert(number) {
            self.doubled += 1;
        } else if number < received.next {
            received.late.insert(number);
        }
        received.next = received.next.max(number.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_counted() {
        let mut book = Book::new(0);
        for number in [0, 1, 3, 2, 3, 200] {
            book.enter(7, number);
        }
        let mut two = Numbers::default();
        two.insert(2);
        assert_eq!((book.doubled, &book.received[&7].late), (1, &two));
        let mut sent = Numbers::default();
        for number in [0, 1, 2, 3, 4, 199, 200, 1000] {
            sent.insert(number);
        }
        assert_eq!(sent.without(&book.received[&7].numbers), 3, "4, 199 and 1000");
        assert_eq!(Numbers::default().without(&sent), 0);
        assert_eq!((sent.within(&two), sent.within(&Numbers::default())), (1, 0));
    }
}
