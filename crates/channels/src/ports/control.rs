//! Control: orders to every replica, and questions to all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{ConnectionInfo, NodeStats, SubscribeOptions};

/// Which connections an order is meant for: those that have everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// User id; empty only where `client` or `session` says who is meant.
    pub user: String,
    /// Only the connection with this client id; empty for all.
    pub client: String,
    /// Only the connection with this session id; empty for all.
    pub session: String,
}

/// Something that every replica does with the connections it holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// Subscribe on the server's side; a connection that is subscribed already stays as it is.
    Subscribe {
        /// Whom.
        target: Target,
        /// To which channel.
        channel: String,
        /// With which options.
        options: Box<SubscribeOptions>,
    },
    /// End a subscription, whoever made it.
    Unsubscribe {
        /// Whom.
        target: Target,
        /// From which channel; empty for every channel.
        channel: String,
        /// Code for the client.
        code: u32,
        /// Reason for the client.
        reason: String,
    },
    /// Close connections.
    Disconnect {
        /// Whom.
        target: Target,
        /// Close code, 3000–4999.
        code: u16,
        /// Reason for the client, at most 123 bytes.
        reason: String,
        /// Client ids that stay.
        whitelist: Vec<String>,
    },
    /// Change when connections expire.
    Refresh {
        /// Whom.
        target: Target,
        /// Treat the connection as expired now.
        expired: bool,
        /// New expiry, Unix seconds; 0: never.
        expire_at: u64,
        /// New connection information (raw bytes); `None` leaves it.
        info: Option<Vec<u8>>,
    },
}

/// What every replica is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Active channels, those that match the glob pattern when it is not empty.
    Channels {
        /// Glob pattern (`*`, `?`, `[a-z]`); empty for all.
        pattern: String,
    },
    /// [`NodeInfo`].
    Info,
    /// [`NodeStats`].
    Stats,
    /// A client id has come back elsewhere: close the connections that have it and are older, and hand over what
    /// others see of them.
    Release {
        /// Client id.
        client: String,
        /// Step of the connection that stays.
        step: u32,
    },
    /// Connections of a user.
    Connections {
        /// User id.
        user: String,
    },
}

/// One replica's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Subscribers on this replica, by channel.
    Channels(BTreeMap<String, u32>),
    /// About the replica.
    Info(Box<NodeInfo>),
    /// What the replica is doing.
    Stats(Box<NodeStats>),
    /// What was handed over.
    Released(Released),
    /// Connections by client id.
    Connections(BTreeMap<String, ConnectionInfo>),
}

/// What a replica handed over of a client that came back elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Where others take the client for present; their leaves are not told here any more.
    pub seats: Vec<ReleasedSeat>,
    /// A connection had not ended in time: there may be more.
    pub pending: bool,
}

/// A channel in which others take a client for present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedSeat {
    /// Channel.
    pub channel: String,
    /// What others may see of the subscriber there (raw bytes).
    pub info: Vec<u8>,
}

/// What a replica says of itself; the fields of the API's `info`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Unique id of this run of the replica.
    pub uid: String,
    /// Configured or host-derived name.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Connections.
    pub num_clients: u32,
    /// Distinct users.
    pub num_users: u32,
    /// Subscriptions.
    pub num_subs: u32,
    /// Channels with a local subscriber.
    pub num_channels: u32,
    /// Seconds since start.
    pub uptime: u32,
}

/// Why an order or a question did not reach everybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Temporary.
    #[error("control is unavailable: {reason}")]
    Unavailable {
        /// For operators.
        reason: String,
    },
}

/// The side of a replica that carries orders out.
#[async_trait]
pub trait Replica: Send + Sync + 'static {
    /// Carries an order out on the connections held here. Idempotent.
    async fn execute(&self, order: Order);

    /// Answers from what this replica holds.
    async fn answer(&self, question: Question) -> Answer;
}

/// The way from one replica to all, itself included.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Names the replica that this side serves; called once, before anything else.
    fn attach(&self, replica: Arc<dyn Replica>);

    /// Has every replica execute the order; resolves when all that can be reached have it, or fails after 2 s when one of
    /// them has not said so (the order may still take effect there: orders are idempotent, so it can be given again).
    async fn broadcast(&self, order: Order) -> Result<(), ControlError>;

    /// Asks every replica; resolves with the answers of those that answered within 2 s, this one's among them.
    async fn survey(&self, question: Question) -> Result<Vec<Answer>, ControlError>;
}
