//! Working memory of the thread that polls a connection, so that no connection owns any.

use std::cell::Cell;

use crate::batch::Batch;
use plenum_channels::Work;

/// Most bytes that one read takes from a socket.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Buffers that a poll borrows. Their contents mean nothing between polls.
pub(crate) struct Scratch {
    pub(crate) read: Vec<u8>,
    pub(crate) work: Work,
    pub(crate) batch: Batch,
}

impl Scratch {
    /// Runs `f` with the thread's scratch; a nested call gets one of its own.
    pub(crate) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
        let mut scratch = SCRATCH.take().unwrap_or_else(|| {
            Box::new(Scratch { read: vec![0; READ], work: Work::default(), batch: Batch::default() })
        });
        let result = f(&mut scratch);
        SCRATCH.set(Some(scratch));
        result
    }
}
