//! The fence of one client id.

use bytes::Bytes;

use super::changes::Changes;

/// Tells passes of the same generation apart.
pub(crate) type Nonce = [u8; 16];

const VERSION: u8 = 1;
/// Without [`Changes`], which follow.
const SIZE: usize = 42;

/// Which pass was taken last, and which one follows it. A client id that never came back has none, or one of generation 0: then
/// the pass of generation 1 opens, of which only one was ever made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fence {
    /// Generation of the pass that was taken last.
    pub(crate) generation: u32,
    /// Its nonce.
    pub(crate) accepted: Nonce,
    /// Nonce of the pass that was given for it.
    pub(crate) successor: Nonce,
    /// How often the client id has come back; the connection of the highest step holds it.
    pub(crate) step: u32,
    /// The client has shown that it got the successor.
    pub(crate) confirmed: bool,
    /// By the server API.
    pub(crate) changes: Changes,
}

impl Fence {
    /// The fence after this pass was taken; `None` if it must not be.
    pub(crate) fn accept(found: Option<&Fence>, generation: u32, nonce: Nonce) -> Option<Fence> {
        let allowed = match found {
            None => generation == 1,
            Some(fence) if fence.changes.dropped => false,
            Some(fence) if fence.generation == 0 => generation == 1,
            Some(fence) => {
                let follows = generation == fence.generation.wrapping_add(1) && nonce == fence.successor;
                let again = generation == fence.generation && nonce == fence.accepted && !fence.confirmed;
                follows || again
            }
        };
        let step = found.map_or(0, |fence| fence.step).saturating_add(1);
        // They stay in it: a pass can be taken again, and a newer token does not know of them either.
        let changes = found.map(|fence| fence.changes.clone()).unwrap_or_default();
        allowed.then(|| Fence {
            generation,
            accepted: nonce,
            successor: rand::random(),
            step,
            confirmed: false,
            changes,
        })
    }

    /// Of a client id that never came back.
    pub(crate) fn untaken() -> Fence {
        let (accepted, successor, changes) = (Nonce::default(), Nonce::default(), Changes::default());
        Fence { generation: 0, accepted, successor, step: 0, confirmed: true, changes }
    }

    /// Whether both say the same of who holds the client id.
    pub(crate) fn is_same_step(&self, other: &Fence) -> bool {
        (self.step, self.successor) == (other.step, other.successor)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.push(VERSION);
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.accepted);
        bytes.extend(self.successor);
        bytes.extend(self.step.to_le_bytes());
        bytes.push(u8::from(self.confirmed));
        bytes.extend(self.changes.encode());
        bytes.into()
    }

    /// `None` for what [`Fence::encode`] never makes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Fence> {
        if bytes.len() < SIZE || bytes[0] != VERSION {
            return None;
        }
        Some(Fence {
            generation: u32::from_le_bytes(bytes[1..5].try_into().ok()?),
            accepted: bytes[5..21].try_into().ok()?,
            successor: bytes[21..37].try_into().ok()?,
            step: u32::from_le_bytes(bytes[37..41].try_into().ok()?),
            confirmed: bytes[41] == 1,
            changes: Changes::decode(&bytes[SIZE..])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_opens_once_it_is_due_and_until_its_successor_is_confirmed() {
        let first = [1; 16];
        let fence = Fence::accept(None, 1, first).unwrap();
        assert!(Fence::accept(None, 2, first).is_none(), "nobody can hold a later one");
        let again = Fence::accept(Some(&fence), 1, first).expect("the reply may have been lost");
        assert_ne!(again.successor, fence.successor);
        assert!(Fence::accept(Some(&again), 2, fence.successor).is_none(), "the lost reply's pass is void");
        let next = Fence::accept(Some(&again), 2, again.successor).expect("the successor");
        assert!(Fence::accept(Some(&next), 1, first).is_none(), "outdated");
        let confirmed = Fence { confirmed: true, ..next.clone() };
        assert!(Fence::accept(Some(&confirmed), 2, again.successor).is_none(), "used and confirmed");
        assert!(Fence::accept(Some(&confirmed), 3, next.successor).is_some());
        assert_eq!(Fence::decode(&confirmed.encode()), Some(confirmed.clone()));
        assert_eq!(Fence::decode(b""), None);
    }

    #[test]
    fn changes_stay_with_the_client_id_and_too_many_of_them_end_it() {
        let mut untaken = Fence::untaken();
        untaken.changes.note("a", None);
        assert_eq!(Fence::decode(&untaken.encode()), Some(untaken.clone()));
        let first = Fence::accept(Some(&untaken), 1, [1; 16]).expect("the only pass there is");
        assert!(Fence::accept(Some(&untaken), 2, [1; 16]).is_none());
        let next = Fence::accept(Some(&first), 2, first.successor).unwrap();
        assert!(next.changes.ended("a") && next.step == 2);
        untaken.changes.dropped = true;
        assert!(Fence::accept(Some(&untaken), 1, [1; 16]).is_none());
    }
}
