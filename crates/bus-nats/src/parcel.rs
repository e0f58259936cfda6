//! What the keyed workers of a process carry.

use std::fmt;
use std::future::Future;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::log::Piece;
use crate::workers::Step;

/// One message of the keyed workers of a process: live messages of a channel, or a task.
pub struct Parcel(Content);

enum Content {
    /// Done at once; nothing of it is allocated for its way.
    Live(Piece),
    Task(BoxFuture<'static, ()>),
}

impl Parcel {
    /// A task, which may wait: its work must say so ([`crate::workers::Terms::waits`]) and answers [`Parcel::step`]. It is
    /// dropped when it is not done.
    pub fn task(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Content::Task(task.boxed()))
    }

    pub(crate) fn live(piece: Piece) -> Self {
        Self(Content::Live(piece))
    }

    /// Does what it is for.
    pub fn step(self) -> Step {
        match self.0 {
            Content::Live(piece) => {
                piece.carry_out();
                Step::Done
            }
            Content::Task(task) => Step::Later(task),
        }
    }

    /// Live messages that were given back.
    pub(crate) fn into_live(self) -> Option<Piece> {
        match self.0 {
            Content::Live(piece) => Some(piece),
            Content::Task(_) => None,
        }
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Content::Live(_) => "Parcel::Live",
            Content::Task(_) => "Parcel::Task",
        })
    }
}
