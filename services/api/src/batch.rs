//! Many commands in one request.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{Shared, join_all};
use futures_util::stream::{FuturesOrdered, StreamExt};
use plenum_protocol::ErrorCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::ApiError;
use crate::control::*;
use crate::decode::{object, objects};
use crate::methods::{Calls, MAX_OPERATIONS, MAX_STARTED, begin};
use crate::request::*;
use crate::response::*;

/// Bytes of replies after which the commands that are left are refused.
const MAX_REPLY_BYTES: usize = 32 * 1024 * 1024;

/// Many commands, carried out in their order, or at once when `parallel`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct BatchRequest {
    /// At most 10,000; a broadcast counts once per channel.
    #[serde(deserialize_with = "objects")]
    #[schemars(required, length(max = 10000))]
    pub commands: Option<Vec<Command>>,
    /// Do not wait for a command before beginning the next. Publications to one channel keep their order all the same;
    /// those that follow one another are begun without waiting in any case, and everything else waits for them.
    pub parallel: Option<bool>,
}

macro_rules! commands {
    ($($name:ident: $request:ty => $result:ty,)*) => {
        /// One command: the request under the name of its method.
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[schemars(extend("minProperties" = 1))]
        pub struct Command {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                #[serde(default, deserialize_with = "object")]
                pub $name: Option<$request>,
            )*
        }

        /// The answer to one command: the result under the name of its method, or `error`.
        #[derive(Debug, Default, Serialize, JsonSchema)]
        pub struct Reply {
            /// Why it failed.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub error: Option<ApiError>,
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$result>,
            )*
        }

        impl Command {
            fn names(&self) -> Vec<&'static str> {
                let named = [$((stringify!($name), self.$name.is_some()),)*];
                named.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
            }

            async fn reply(self, calls: &Calls) -> Reply {
                let mut reply = Reply::default();
                if let Some(error) = self.ambiguity() {
                    reply.error = Some(error);
                }
                $(else if let Some(request) = self.$name {
                    match calls.call(request).await {
                        Ok(result) => reply.$name = Some(result),
                        Err(error) => reply.error = Some(error),
                    }
                })*
                reply
            }
        }
    };
}

commands! {
    publish: PublishRequest => PublishResult,
    broadcast: BroadcastRequest => BroadcastResult,
    subscribe: SubscribeRequest => Empty,
    unsubscribe: UnsubscribeRequest => Empty,
    disconnect: DisconnectRequest => Empty,
    refresh: RefreshRequest => Empty,
    presence: PresenceRequest => PresenceResult,
    presence_stats: PresenceStatsRequest => PresenceStatsResult,
    history: HistoryRequest => HistoryResult,
    history_remove: HistoryRemoveRequest => Empty,
    channels: ChannelsRequest => ChannelsResult,
    info: InfoRequest => InfoResult,
    block_user: BlockUserRequest => Empty,
    unblock_user: UnblockUserRequest => Empty,
    revoke_token: RevokeTokenRequest => Empty,
    invalidate_user_tokens: InvalidateUserTokensRequest => Empty,
    connections: ConnectionsRequest => ConnectionsResult,
}

impl Command {
    fn ambiguity(&self) -> Option<ApiError> {
        match self.names().as_slice() {
            [_] => None,
            [] => Some(ApiError::new(ErrorCode::METHOD_NOT_FOUND, "the command names no known method")),
            names => {
                let details = format!("a command names the methods {}; allowed: one", names.join(", "));
                Some(ApiError::new(ErrorCode::BAD_REQUEST, details))
            }
        }
    }

    /// Channels that it publishes into.
    fn publishes_into(&self) -> impl Iterator<Item = &String> {
        let one = self.publish.iter().flat_map(|publish| &publish.channel);
        let many = self.broadcast.iter().flat_map(|broadcast| &broadcast.channels).flatten();
        one.chain(many)
    }

    /// Whether its place among the publications of its channels is fixed only when it runs: a version is decided by the
    /// channel's end, and what has no history does not pass through the log.
    fn is_ordered_late(&self) -> bool {
        let publish = self.publish.iter().map(|publish| (publish.version, publish.skip_history));
        let broadcast = self.broadcast.iter().map(|broadcast| (broadcast.version, broadcast.skip_history));
        publish.chain(broadcast).any(|(version, live)| version.is_some_and(|number| number > 0) || live == Some(true))
    }

    fn publishes(&self) -> bool {
        self.publish.is_some() || self.broadcast.is_some()
    }

    fn operations(&self) -> usize {
        self.publishes_into().count().max(1)
    }
}

impl BatchRequest {
    /// Replies stand in the order of the commands. An error means that none was carried out.
    pub(crate) async fn replies(self, calls: &Calls) -> Result<BatchResult, ApiError> {
        let Some(commands) = self.commands else {
            return Err(ApiError::missing("commands", "an array of commands"));
        };
        let operations = commands.iter().map(Command::operations).sum::<usize>();
        if operations > MAX_OPERATIONS {
            let details = format!("the batch holds {operations} operations; allowed: at most {MAX_OPERATIONS}");
            return Err(ApiError::new(ErrorCode::LIMIT_EXCEEDED, details));
        }
        let room = AtomicUsize::new(MAX_REPLY_BYTES);
        let parallel = self.parallel.unwrap_or_default();
        let mut order = PublishOrder::of(&commands);
        let mut line = Line { running: FuturesOrdered::new(), sizes: VecDeque::new(), size: 0, replies: Vec::new() };
        line.replies.reserve(commands.len());
        for command in commands {
            let (size, alone) = (command.operations(), !parallel && !command.publishes());
            line.shorten(if alone { 0 } else { MAX_STARTED.saturating_sub(size) }).await?;
            let (earlier, done) = order.place(&command);
            let room = &room;
            let reply = begin(async move {
                join_all(earlier).await;
                let reply = reply(command, calls, room).await;
                drop(done);
                reply
            });
            line.running.push_back(reply);
            line.sizes.push_back(size);
            line.size += size;
            if alone {
                line.shorten(0).await?;
            }
        }
        line.shorten(0).await?;
        Ok(BatchResult { replies: line.replies })
    }
}

/// Commands that were begun, in their order, and the replies to those before them.
struct Line<F: Future> {
    running: FuturesOrdered<F>,
    /// Operations of each, and of all.
    sizes: VecDeque<usize>,
    size: usize,
    replies: Vec<Box<RawValue>>,
}

impl<F: Future<Output = Result<Box<RawValue>, ApiError>>> Line<F> {
    /// Waits for the first commands until those that are left have at most `size` operations.
    async fn shorten(&mut self, size: usize) -> Result<(), ApiError> {
        while self.size > size {
            let Some(reply) = self.running.next().await else { return Ok(()) };
            self.replies.push(reply?);
            self.size -= self.sizes.pop_front().unwrap_or_default();
        }
        Ok(())
    }
}

async fn reply(command: Command, calls: &Calls, room: &AtomicUsize) -> Result<Box<RawValue>, ApiError> {
    let reply = if room.load(Ordering::Relaxed) == 0 {
        let details =
            format!("the replies of this batch reached {MAX_REPLY_BYTES} bytes; this command was not carried out");
        Reply { error: Some(ApiError::new(ErrorCode::LIMIT_EXCEEDED, details)), ..Reply::default() }
    } else {
        command.reply(calls).await
    };
    let reply = serde_json::value::to_raw_value(&reply).map_err(|error| ApiError::new(ErrorCode::INTERNAL, error))?;
    let _ =
        room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(reply.get().len())));
    Ok(reply)
}

/// Resolves when a command ended, which drops the sender.
type Ended = Shared<oneshot::Receiver<()>>;

/// Has each command wait for the one before it that publishes into the same channel, where the calls alone do not fix
/// the order.
struct PublishOrder {
    /// The place of some command is fixed late. One that waits delays all its channels, so this holds for the batch.
    late: bool,
    last: HashMap<String, Ended>,
}

impl PublishOrder {
    fn of(commands: &[Command]) -> Self {
        Self { late: commands.iter().any(Command::is_ordered_late), last: HashMap::new() }
    }

    /// What to wait for, and what to drop at the end.
    fn place(&mut self, command: &Command) -> (Vec<Ended>, Option<oneshot::Sender<()>>) {
        if !self.late {
            return (Vec::new(), None);
        }
        let (done, ended) = oneshot::channel();
        let ended = ended.shared();
        // A broadcast that names a channel twice must not wait for itself.
        let channels: BTreeSet<&String> = command.publishes_into().collect();
        let earlier = channels.into_iter().filter_map(|channel| self.last.insert(channel.clone(), ended.clone()));
        (earlier.collect(), Some(done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_command_names_one_method() {
        assert!(command(r#"{"info":{}}"#).ambiguity().is_none());
        assert_eq!(command("{}").ambiguity().unwrap().code, 104);
        assert_eq!(command(r#"{"rpc":{}}"#).ambiguity().unwrap().code, 104);
        let error = command(r#"{"info":{},"channels":{}}"#).ambiguity().unwrap();
        assert_eq!(error.code, 107);
        assert!(error.message.contains("channels, info"), "{}", error.message);
    }

    #[test]
    fn publications_to_one_channel_wait_for_each_other_where_a_version_decides() {
        let mut commands = vec![
            command(r#"{"publish":{"channel":"a"}}"#),
            command(r#"{"publish":{"channel":"b","version":0,"skip_history":false}}"#),
            command(r#"{"broadcast":{"channels":["a","c","a"]}}"#),
            command(r#"{"publish":{"channel":"a"}}"#),
        ];
        let mut order = PublishOrder::of(&commands);
        assert!(commands.iter().all(|command| order.place(command).0.is_empty()), "the calls fix the order");

        commands.push(command(r#"{"publish":{"channel":"d","version":1}}"#));
        let mut order = PublishOrder::of(&commands);
        let [(first, first_done), (other, _), (second, second_done), (third, _third_done), _] =
            std::array::from_fn(|index| order.place(&commands[index]));
        assert!(first.is_empty() && other.is_empty());
        assert_eq!((second.len(), third.len()), (1, 1));
        assert!(join_all(second.clone()).now_or_never().is_none());
        drop(first_done);
        assert!(join_all(second).now_or_never().is_some());
        assert!(join_all(third.clone()).now_or_never().is_none());
        drop(second_done);
        assert!(join_all(third).now_or_never().is_some());
        assert!(command(r#"{"broadcast":{"channels":["a"],"skip_history":true}}"#).is_ordered_late());
    }

    #[test]
    fn a_broadcast_counts_once_per_channel() {
        assert_eq!(command(r#"{"broadcast":{"channels":["a","c","a"]}}"#).operations(), 3);
        assert_eq!(command(r#"{"info":{}}"#).operations(), 1);
        assert_eq!(command("{}").operations(), 1);
    }
}
