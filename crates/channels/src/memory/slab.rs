//! Storage by small ids, and lists threaded through it.

/// Values per allocation: growing never copies and wastes at most one chunk.
const CHUNK: usize = 256;

/// No id: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// Values under ids that stay while the value lives; ids of removed values are used again.
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
    free: u32,
    len: usize,
}

enum Slot<T> {
    Full(T),
    /// The next free slot.
    Free(u32),
}

impl<T> Slab<T> {
    pub fn new() -> Self {
        Self { chunks: Vec::new(), free: NONE, len: 0 }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if self.free != NONE {
            let id = self.free;
            let slot = &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK];
            if let Slot::Free(next) = *slot {
                self.free = next;
            }
            *slot = Slot::Full(value);
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let chunk = &mut self.chunks[before / CHUNK];
        chunk.push(Slot::Full(value));
        (before + chunk.len() - 1) as u32
    }

    pub fn remove(&mut self, id: u32) -> Option<T> {
        let slot = self.chunks.get_mut(id as usize / CHUNK)?.get_mut(id as usize % CHUNK)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let Slot::Full(value) = std::mem::replace(slot, Slot::Free(self.free)) else { return None };
        self.free = id;
        self.len -= 1;
        Some(value)
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        match self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)? {
            Slot::Full(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.chunks.get_mut(id as usize / CHUNK)?.get_mut(id as usize % CHUNK)? {
            Slot::Full(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let full = |slot: &Slot<T>| matches!(slot, Slot::Full(_));
        let slots = self.chunks.iter().flatten().enumerate();
        slots.filter(move |(_, slot)| full(slot)).map(|(id, _)| id as u32)
    }
}

/// `slab[id]` is for ids that the caller knows to be in use; it panics on others.
impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        match self.get(id) {
            Some(value) => value,
            None => panic!("slot {id} is not in use"),
        }
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        match self.get_mut(id) {
            Some(value) => value,
            None => panic!("slot {id} is not in use"),
        }
    }
}

/// A value's neighbours in the list that it is in.
#[derive(Clone, Copy)]
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    pub const NONE: Links = Links { prev: NONE, next: NONE };
}

/// A value that can stand in one [`List`].
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A doubly linked list of values of a slab: any of them leaves in constant time.
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub const EMPTY: List = List { head: NONE, tail: NONE };

    pub fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub fn push_back<T: Linked>(&mut self, slab: &mut Slab<T>, id: u32) {
        *slab[id].links() = Links { prev: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = id,
            tail => slab[tail].links().next = id,
        }
        self.tail = id;
    }

    pub fn unlink<T: Linked>(&mut self, slab: &mut Slab<T>, id: u32) {
        let Links { prev, next } = std::mem::replace(slab[id].links(), Links::NONE);
        match prev {
            NONE => self.head = next,
            prev => slab[prev].links().next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => slab[next].links().prev = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(u32, Links);

    impl Linked for Item {
        fn links(&mut self) -> &mut Links {
            &mut self.1
        }
    }

    #[test]
    fn ids_stay_and_are_used_again() {
        let mut slab = Slab::new();
        let ids: Vec<u32> = (0..600).map(|n| slab.insert(Item(n, Links::NONE))).collect();
        assert!(ids.iter().enumerate().all(|(n, &id)| slab[id].0 == n as u32));
        assert_eq!(slab.remove(ids[300]).map(|item| item.0), Some(300));
        assert!(slab.get(ids[300]).is_none() && slab.remove(ids[300]).is_none());
        assert_eq!((slab.len(), slab.ids().count()), (599, 599));
        assert_eq!(slab.insert(Item(9, Links::NONE)), ids[300]);
    }

    #[test]
    fn a_list_loses_members_anywhere() {
        let mut slab = Slab::new();
        let mut list = List::EMPTY;
        let ids: Vec<u32> = (0..5).map(|n| slab.insert(Item(n, Links::NONE))).collect();
        ids.iter().for_each(|&id| list.push_back(&mut slab, id));
        for gone in [2, 0, 4] {
            list.unlink(&mut slab, ids[gone]);
        }
        assert_eq!(list.first(), Some(ids[1]));
        list.unlink(&mut slab, ids[1]);
        assert_eq!(list.first(), Some(ids[3]));
        list.unlink(&mut slab, ids[3]);
        assert_eq!(list.first(), None);
    }
}
