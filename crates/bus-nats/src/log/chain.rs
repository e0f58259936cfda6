//! The chain check: which live message of a channel is delivered, dropped or must wait, as a state machine without I/O.
//!
//! Names are those of the written rules: `s` a message's own sequence, `v` the sequence before it on its subject as the
//! server saw it, `last` (l) the last one delivered, `verified` (w ≥ l) the sequence through which nothing is missing.

use std::collections::VecDeque;

/// Most live messages that wait while a gap is read; what comes beyond is dropped and read from the stream.
pub(super) const MAX_HELD: usize = 1024;

/// Most payload bytes that wait while a gap is read.
pub(super) const MAX_HELD_BYTES: usize = 4 << 20;

/// A live message of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incoming<T> {
    /// Its own sequence.
    pub seq: u64,
    /// The sequence before it on its subject when it was stored; 0: there was none.
    pub previous: u64,
    /// The front of the stream cannot have passed what is verified when this was stored.
    pub front_safe: bool,
    /// Bytes counted against the bound while it waits.
    pub bytes: usize,
    /// What is delivered.
    pub item: T,
}

/// A part of the channel that must be read from the stream before delivery goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// Everything after this sequence is wanted.
    pub after: u64,
    /// Nothing is missing through here; at least `after`.
    pub verified: u64,
    /// The answer must reach this sequence.
    pub target: u64,
}

/// What was read for a [`Gap`].
#[derive(Clone, Debug)]
pub(super) struct Filled<T> {
    /// Sequence and content, in order.
    pub items: Vec<(u64, T)>,
    /// The answer holds everything of the channel through this sequence.
    pub through: u64,
    /// Proof that nothing after [`Gap::verified`] was trimmed away.
    pub complete: bool,
}

/// What a step leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output<T> {
    /// Deliver; `previous` is the sequence delivered before it.
    Deliver {
        /// The sequence.
        seq: u64,
        /// The one before it on the channel, 0 if none is known.
        previous: u64,
        /// The content.
        item: T,
    },
    /// Something before what follows is gone for good; delivery goes on after this sequence.
    Lost {
        /// Where delivery goes on.
        after: u64,
    },
    /// Read this and call [`Chain::filled`].
    Fill(Gap),
}

/// One channel's state on one replica.
#[derive(Debug)]
pub(super) struct Chain<T> {
    last: u64,
    verified: u64,
    /// The channel is known to have something at or after this sequence.
    required: u64,
    reading: bool,
    held: VecDeque<Incoming<T>>,
    held_bytes: usize,
}

impl<T> Chain<T> {
    /// A chain whose start is being read: live messages wait for [`Chain::joined`].
    pub fn joining() -> Self {
        Self { last: 0, verified: 0, required: 0, reading: true, held: VecDeque::new(), held_bytes: 0 }
    }

    /// The start is known: `last` is the channel's end as of a fresh read through `verified`.
    pub fn joined(&mut self, last: u64, verified: u64, out: &mut Vec<Output<T>>) {
        self.last = last;
        self.verified = verified.max(last);
        self.reading = false;
        self.go_on(out);
    }

    /// The last sequence delivered.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Nothing of the channel is missing through here.
    #[cfg(test)]
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// Nothing waits for a read and nothing more is known to exist.
    pub fn is_settled(&self) -> bool {
        !self.reading && self.required <= self.last
    }

    /// The shard's digests show nothing of this channel that was not delivered, through `through`.
    pub fn verify(&mut self, through: u64) {
        if self.is_settled() {
            self.verified = self.verified.max(through);
        }
    }

    /// The channel has something at or after `seq`.
    pub fn require(&mut self, seq: u64, out: &mut Vec<Output<T>>) {
        self.required = self.required.max(seq);
        if !self.reading && self.required > self.verified {
            self.read(self.required, out);
        }
    }

    /// A live message came.
    pub fn live(&mut self, incoming: Incoming<T>, out: &mut Vec<Output<T>>) {
        if self.reading { self.hold(incoming) } else { self.accept(incoming, out) }
    }

    /// A gap was read.
    pub fn filled(&mut self, filled: Filled<T>, out: &mut Vec<Output<T>>) {
        self.reading = false;
        let fresh = filled.items.into_iter().filter(|(seq, _)| *seq > self.last).collect::<Vec<_>>();
        if !filled.complete {
            let after = fresh.first().map_or(filled.through, |(seq, _)| seq - 1).max(self.last);
            self.last = after;
            out.push(Output::Lost { after });
        }
        for (seq, item) in fresh {
            self.deliver(seq, item, out);
        }
        self.verified = self.verified.max(filled.through).max(self.last);
        self.go_on(out);
    }

    fn go_on(&mut self, out: &mut Vec<Output<T>>) {
        while !self.reading
            && let Some(incoming) = self.held.pop_front()
        {
            self.held_bytes -= incoming.bytes;
            self.accept(incoming, out);
        }
        if !self.reading && self.required > self.verified {
            self.read(self.required, out);
        }
    }

    fn accept(&mut self, incoming: Incoming<T>, out: &mut Vec<Output<T>>) {
        let Incoming { seq, previous, front_safe, .. } = incoming;
        if seq <= self.last {
            return;
        }
        let follows = previous == self.last && self.last > 0;
        // Behind what was verified there is nothing left to miss, whatever the front took.
        let nothing_between = previous <= self.last && (front_safe || self.verified + 1 >= seq);
        if follows || nothing_between {
            self.deliver(seq, incoming.item, out);
            return;
        }
        // After a trimmed predecessor the answer must contain the message itself, else it only must reach the predecessor.
        let target = if previous > self.last { previous } else { seq };
        self.held_bytes += incoming.bytes;
        self.held.push_front(incoming);
        self.read(target, out);
    }

    fn deliver(&mut self, seq: u64, item: T, out: &mut Vec<Output<T>>) {
        out.push(Output::Deliver { seq, previous: self.last, item });
        self.last = seq;
        self.verified = self.verified.max(seq);
    }

    fn read(&mut self, target: u64, out: &mut Vec<Output<T>>) {
        self.reading = true;
        out.push(Output::Fill(Gap { after: self.last, verified: self.verified, target }));
    }

    fn hold(&mut self, incoming: Incoming<T>) {
        if self.held.len() >= MAX_HELD || self.held_bytes + incoming.bytes > MAX_HELD_BYTES {
            self.required = self.required.max(incoming.seq);
            return;
        }
        self.held_bytes += incoming.bytes;
        self.held.push_back(incoming);
    }
}
