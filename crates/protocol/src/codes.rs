//! The published codes, and what a client does with each.

use std::borrow::Cow;
use std::fmt;

use crate::reply::{ErrorReply, PushEvent};

/// A code in an error reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode {
    /// 100 to 399 belong to the protocol, 400 to 1999 to applications.
    pub code: u32,
    /// For people.
    pub message: &'static str,
    /// Trying again later may help.
    pub temporary: bool,
}

/// A code that closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Disconnect {
    /// Close code of the WebSocket: 3000 to 3999 belong to the protocol, 4000 to 4999 to applications.
    pub code: u16,
    /// For people; at most 123 bytes fit into a close frame.
    pub reason: Cow<'static, str>,
}

/// A code that ends a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unsubscribed {
    /// Below 2000 it never reaches a client.
    pub code: u32,
    /// For people.
    pub reason: Cow<'static, str>,
}

/// Which kind of code a [`Row`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`ErrorCode`].
    Error,
    /// [`Unsubscribed`].
    Unsubscribe,
    /// [`Disconnect`].
    Disconnect,
}

/// One line of [`TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Kind of the code.
    pub kind: Kind,
    /// The code.
    pub code: u32,
    /// Its published text.
    pub text: &'static str,
    /// What a client does with it.
    pub client: &'static str,
    /// When we send it.
    pub when: &'static str,
}

macro_rules! codes {
    (
        errors { $($error:ident = $ecode:literal $emessage:literal $temporary:literal, $eclient:expr, $ewhen:literal;)* }
        unsubscribes { $($unsubscribe:ident = $ucode:literal $ureason:literal, $uclient:expr, $uwhen:literal;)* }
        disconnects { $($disconnect:ident = $dcode:literal $dreason:literal, $dclient:expr, $dwhen:literal;)* }
    ) => {
        impl ErrorCode {
            $(
                #[doc = concat!("`", $emessage, "`: ", $ewhen, ".")]
                pub const $error: ErrorCode =
                    ErrorCode { code: $ecode, message: $emessage, temporary: $temporary };
            )*
        }
        impl Unsubscribed {
            $(
                #[doc = concat!("`", $ureason, "`: ", $uwhen, ".")]
                pub const $unsubscribe: Unsubscribed =
                    Unsubscribed { code: $ucode, reason: Cow::Borrowed($ureason) };
            )*
        }
        impl Disconnect {
            $(
                #[doc = concat!("`", $dreason, "`: ", $dwhen, ".")]
                pub const $disconnect: Disconnect =
                    Disconnect { code: $dcode, reason: Cow::Borrowed($dreason) };
            )*
        }
        /// Every code that we know, in the order of the numbers within each kind.
        pub const TABLE: &[Row] = &[
            $(Row { kind: Kind::Error, code: $ecode, text: $emessage, client: $eclient, when: $ewhen },)*
            $(Row { kind: Kind::Unsubscribe, code: $ucode, text: $ureason, client: $uclient, when: $uwhen },)*
            $(Row { kind: Kind::Disconnect, code: $dcode, text: $dreason, client: $dclient, when: $dwhen },)*
        ];
    };
}

const RETRIES: &str = "tries connect, subscribe and refresh again with growing delays; other calls fail";
const FAILS: &str = "the call fails; connect and refresh end disconnected, subscribe and sub_refresh unsubscribed";
const NEW_TOKEN: &str = "gets a new token and tries connect or subscribe again; other calls as with 101";
const COMES_BACK: &str = "reconnects with growing delays, subscribes again, recovers";
const STAYS_AWAY: &str = "stays disconnected";
const UNSEEN: &str = "never sees it";

codes! {
    errors {
        INTERNAL = 100 "internal server error" true, RETRIES, "something failed on our side";
        UNAUTHORIZED = 101 "unauthorized" false, FAILS, "the call needs an identity that the connection lacks";
        UNKNOWN_CHANNEL = 102 "unknown channel" false, FAILS, "the channel's namespace does not exist";
        PERMISSION_DENIED = 103 "permission denied" false, FAILS, "the call is not allowed on this channel";
        METHOD_NOT_FOUND = 104 "method not found" false, FAILS, "the server API has no such method; an unknown command closes with 3501";
        ALREADY_SUBSCRIBED = 105 "already subscribed" false, FAILS, "the connection has this subscription";
        LIMIT_EXCEEDED = 106 "limit exceeded" false, FAILS, "a limit such as channels per connection is reached";
        BAD_REQUEST = 107 "bad request" false, FAILS, "the call is malformed, or its channel name too long";
        NOT_AVAILABLE = 108 "not available" false, FAILS, "the feature is off or does not exist here";
        TOKEN_EXPIRED = 109 "token expired" false, NEW_TOKEN, "the token's time is over";
        EXPIRED = 110 "expired" false, FAILS, "the new expiry lies in the past";
        TOO_MANY_REQUESTS = 111 "too many requests" true, RETRIES, "a rate limit is reached";
        UNRECOVERABLE_POSITION = 112 "unrecoverable position" false,
            "with `getState` it loads its state and subscribes anew, else it ends unsubscribed",
            "history or a recovery, where the client asked for an error, reaches behind what is kept";
        TOKEN_REVOKED = 113 "token revoked" false, FAILS, "the token was called back";
    }
    unsubscribes {
        CLIENT = 0 "client unsubscribed", UNSEEN, "inside the server: the client asked for it";
        DISCONNECT = 1 "client disconnected", UNSEEN, "inside the server: the connection ended";
        SERVER = 2000 "server unsubscribe", "ends unsubscribed", "the API asked for it";
        INSUFFICIENT_STATE = 2500 "insufficient state", "subscribes again and recovers",
            "the order of a client-side subscription can no longer be kept";
        EXPIRED = 2501 "subscription expired", "subscribes again; where that answers 109, with a new token",
            "the subscription was not refreshed in time";
        STATE_INVALIDATED = 2502 "state invalidated", "drops token and position, subscribes again",
            "what the client remembers of the channel is void";
    }
    disconnects {
        CONNECTION_CLOSED = 3000 "connection closed", COMES_BACK, "the connection ended without a word; for logs";
        SHUTDOWN = 3001 "shutdown", COMES_BACK, "the server stops";
        SERVER_ERROR = 3004 "internal server error", COMES_BACK, "something failed on our side";
        EXPIRED = 3005 "connection expired", COMES_BACK, "the connection was not refreshed in time";
        SUBSCRIPTION_EXPIRED = 3006 "subscription expired", COMES_BACK,
            "a server-side subscription was not refreshed in time";
        SLOW = 3008 "slow", COMES_BACK, "the client reads more slowly than its outbox allows";
        WRITE_ERROR = 3009 "write error", COMES_BACK, "the socket took no more bytes";
        INSUFFICIENT_STATE = 3010 "insufficient state", COMES_BACK,
            "the order of a server-side subscription can no longer be kept";
        FORCE_RECONNECT = 3011 "force reconnect", COMES_BACK, "the API asked for it";
        NO_PONG = 3012 "no pong", COMES_BACK, "pings stayed unanswered";
        TOO_MANY_REQUESTS = 3013 "too many requests", COMES_BACK, "commands come faster than the limit";
        STATE_INVALIDATED = 3014 "state invalidated", "drops token and positions, then reconnects",
            "what the client remembers is void";
        INVALID_TOKEN = 3500 "invalid token", STAYS_AWAY, "the token's signature or a claim is wrong";
        BAD_REQUEST = 3501 "bad request", STAYS_AWAY, "a malformed frame, or commands out of order";
        STALE = 3502 "stale", STAYS_AWAY, "no connect command came in time";
        FORCE_NO_RECONNECT = 3503 "force disconnect", STAYS_AWAY, "the API asked for it";
        CONNECTION_LIMIT = 3504 "connection limit", STAYS_AWAY, "the user or the server has enough connections";
        CHANNEL_LIMIT = 3505 "channel limit", STAYS_AWAY, "the connection has enough subscriptions";
        INAPPROPRIATE_PROTOCOL = 3506 "inappropriate protocol", STAYS_AWAY,
            "a payload that is not JSON is due on a JSON connection";
        PERMISSION_DENIED = 3507 "permission denied", STAYS_AWAY, "the connection is not allowed";
        NOT_AVAILABLE = 3508 "not available", STAYS_AWAY, "a message without an answer has nobody to go to";
        TOO_MANY_ERRORS = 3509 "too many errors", STAYS_AWAY, "the client causes error after error";
    }
}

impl Disconnect {
    /// An application's own code, or one of ours with another reason. A client decides by the code alone.
    pub fn custom(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Disconnect { code, reason: reason.into() }
    }

    /// Whether a client comes back by itself.
    pub fn reconnects(&self) -> bool {
        !matches!(self.code, 3500..=3999 | 4500..=4999)
    }
}

impl Unsubscribed {
    /// Whether a client subscribes again by itself.
    pub fn resubscribes(&self) -> bool {
        self.code >= 2500
    }
}

impl From<ErrorCode> for ErrorReply {
    fn from(code: ErrorCode) -> Self {
        ErrorReply { code: code.code, message: Cow::Borrowed(code.message), temporary: code.temporary }
    }
}

impl From<Unsubscribed> for PushEvent {
    fn from(unsubscribed: Unsubscribed) -> Self {
        PushEvent::Unsubscribe { code: unsubscribed.code, reason: unsubscribed.reason.into_owned() }
    }
}

impl From<Disconnect> for PushEvent {
    fn from(disconnect: Disconnect) -> Self {
        PushEvent::Disconnect {
            code: disconnect.code.into(),
            reconnect: disconnect.reconnects(),
            reason: disconnect.reason.into_owned(),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.message)
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.reason)
    }
}

impl fmt::Display for Unsubscribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.reason)
    }
}
