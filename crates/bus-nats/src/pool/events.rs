use std::fmt::{self, Write};

use serde::Serialize;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Publishing and requests; replaced by age and load.
    Publishing,
    /// Carries subscriptions; stays for the life of the pool.
    Subscribing,
}

impl Role {
    /// As metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Publishing => "publishing",
            Role::Subscribing => "subscribing",
        }
    }
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// First contact.
    Connected {
        /// Address of the server.
        server: String,
    },
    /// Contact was lost; it is sought again for ever.
    Disconnected,
    /// Contact is back; subscriptions stand again, what was sent meanwhile did not arrive.
    Reconnected {
        /// Address of the server.
        server: String,
    },
    /// A subscription's buffer was full and messages of it were dropped; once for all that it drops within 50 ms.
    SlowConsumer {
        /// Which, as [`subscription_id`] gives it.
        subscription: u64,
    },
    /// The server will stop soon.
    LameDuck,
    /// The server or the client library complained (permissions, failed attempts).
    Error {
        /// For operators.
        message: String,
    },
}

/// An event of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEvent {
    /// Number of the connection; never used twice in one pool.
    pub connection: usize,
    /// What it is for.
    pub role: Role,
    /// What happened.
    pub kind: EventKind,
}

/// The number by which [`EventKind::SlowConsumer`] names a subscription; unique in its connection.
///
/// The client library does not give it out except in its debug text; `None` if that text ever changes.
pub fn subscription_id(subscriber: &async_nats::Subscriber) -> Option<u64> {
    /// Takes the digits after `sid: ` and then stops the formatter.
    struct Digits {
        text: String,
    }
    impl Write for Digits {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.text.push_str(part);
            let done = self.text.split_once("sid: ").is_some_and(|(_, rest)| rest.contains(','));
            if done || self.text.len() > 256 { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut digits = Digits { text: String::new() };
    // An error is how the formatter is stopped.
    let _ = write!(digits, "{subscriber:?}");
    let (_, rest) = digits.text.split_once("sid: ")?;
    rest.split_once(',')?.0.trim().parse().ok()
}
