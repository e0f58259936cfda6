//! The closed sets of label values.

/// A label whose values are known when the program is built.
pub trait Label: Copy + Sized + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value's place in [`Label::ALL`].
    fn index(self) -> usize;

    /// The value as it is exported.
    fn name(self) -> &'static str;
}

macro_rules! labels {
    ($(#[$doc:meta])* $label:ident { $($(#[$value_doc:meta])* $value:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $label {
            $(#[doc = concat!("`", $name, "`")] $(#[$value_doc])* $value,)+
        }

        impl Label for $label {
            const ALL: &'static [Self] = &[$($label::$value,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self { $($label::$value => $name,)+ }
            }
        }

        impl $label {
            /// The value of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some($label::$value),)+ _ => None }
            }
        }
    };
}

labels! {
    /// What became of a connect that carried a resume token.
    Resume {
        Accepted = "accepted",
        /// Not sealed by this cluster, or changed since.
        Altered = "altered",
        /// A newer one was taken, or its time is over.
        Outdated = "outdated",
        /// The connection had expired and must be refreshed.
        Expired = "expired",
        /// It belongs to another user than the connection token.
        Foreign = "foreign",
        /// The user is blocked or the connection token was called back.
        Denied = "denied",
        /// The fence could not be asked.
        Unavailable = "unavailable",
        /// The ledger takes no fences of further client ids: the rest of its room is for blocks and revocations.
        Full = "full",
    }
}

labels! {
    /// What is limited.
    Limit {
        UserConnections = "user_connections",
        Subscribers = "subscribers",
        UserConnect = "user_connect_rate",
        UserSubscribe = "user_subscribe_rate",
        UserPublish = "user_publish_rate",
        UserRpc = "user_rpc_rate",
        AddressConnect = "address_connect_rate",
        AddressSubscribe = "address_subscribe_rate",
        AddressPublish = "address_publish_rate",
        AddressRpc = "address_rpc_rate",
    }
}

labels! {
    /// How a limit came to bear.
    LimitOutcome {
        /// Refused by the replica's own count.
        Replica = "replica",
        /// Refused by the count of all replicas.
        Cluster = "cluster",
        /// Let in by the replica's own count, because the cluster's was not reached.
        LetIn = "let_in",
        /// Refused because the cluster's count was not reached.
        ShutOut = "shut_out",
    }
}

labels! {
    /// How a connection is carried.
    Transport {
        WebSocket = "websocket",
    }
}

labels! {
    /// How messages of a connection are encoded.
    WireEncoding {
        Json = "json",
        Protobuf = "protobuf",
    }
}

labels! {
    /// What became of a connect command.
    Connect {
        Accepted = "accepted",
        /// For its token, a limit, or something that was away: an error or a disconnect.
        Refused = "refused",
    }
}

labels! {
    /// What became of a handshake.
    Handshake {
        Accepted = "accepted",
        /// Not a valid WebSocket upgrade.
        Invalid = "invalid",
        /// The Origin is not on the list.
        Origin = "origin",
        /// The process is draining.
        Draining = "draining",
        /// As many connections as are allowed.
        ConnectionLimit = "connection_limit",
        /// New connections come faster than is allowed.
        RateLimit = "rate_limit",
        /// Headers or the TLS handshake took too long.
        Timeout = "timeout",
        /// TLS failed.
        Tls = "tls",
    }
}

labels! {
    /// A command of the client protocol.
    Method {
        Connect = "connect",
        Subscribe = "subscribe",
        Unsubscribe = "unsubscribe",
        Publish = "publish",
        Presence = "presence",
        PresenceStats = "presence_stats",
        History = "history",
        Ping = "ping",
        Send = "send",
        Rpc = "rpc",
        Refresh = "refresh",
        SubRefresh = "sub_refresh",
        Unknown = "unknown",
    }
}

labels! {
    /// A method of the server API.
    ApiMethod {
        Publish = "publish",
        Broadcast = "broadcast",
        Subscribe = "subscribe",
        Unsubscribe = "unsubscribe",
        Disconnect = "disconnect",
        Refresh = "refresh",
        Presence = "presence",
        PresenceStats = "presence_stats",
        History = "history",
        HistoryRemove = "history_remove",
        Channels = "channels",
        Info = "info",
        BlockUser = "block_user",
        UnblockUser = "unblock_user",
        RevokeToken = "revoke_token",
        InvalidateUserTokens = "invalidate_user_tokens",
        Connections = "connections",
        Batch = "batch",
    }
}

labels! {
    /// How a recovery ended.
    Recovery {
        /// Nothing was lost.
        Recovered = "recovered",
        /// The client was told that publications are missing.
        NotRecovered = "not_recovered",
        /// It began well and the log's front overtook the client, or the client never caught up.
        Overtaken = "overtaken",
    }
}

labels! {
    /// Why the log has not acknowledged an append.
    AppendFailure {
        Conflict = "conflict",
        TooLarge = "too_large",
        Unavailable = "unavailable",
        Indeterminate = "indeterminate",
    }
}

/// Number of values of [`ResultCode`].
pub(crate) const RESULT_CODES: usize = 16;

/// The result of a command: success, a published error code (100–113), or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultCode(u8);

impl ResultCode {
    const NAMES: [&'static str; RESULT_CODES] = [
        "0", "100", "101", "102", "103", "104", "105", "106", "107", "108", "109", "110", "111", "112", "113", "other",
    ];

    /// The value for an error code of the protocol; 0 is success.
    pub fn new(code: u32) -> Self {
        match code {
            0 => Self(0),
            // The arm bounds the value, so that it fits.
            100..=113 => Self((code - 99) as u8),
            _ => Self(RESULT_CODES as u8 - 1),
        }
    }
}

impl Label for ResultCode {
    const ALL: &'static [Self] = &{
        let mut all = [ResultCode(0); RESULT_CODES];
        let mut index = 0;
        while index < RESULT_CODES {
            all[index] = ResultCode(index as u8);
            index += 1;
        }
        all
    };

    fn index(self) -> usize {
        self.0.into()
    }

    fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// Number of values of [`CloseCode`].
pub(crate) const CLOSE_CODES: usize = 28;

/// The code that a connection was closed with: 3000–3014, 3500–3509, an application's own (4000–4999), or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u8);

impl CloseCode {
    const NAMES: [&'static str; CLOSE_CODES] = [
        "3000",
        "3001",
        "3002",
        "3003",
        "3004",
        "3005",
        "3006",
        "3007",
        "3008",
        "3009",
        "3010",
        "3011",
        "3012",
        "3013",
        "3014",
        "3500",
        "3501",
        "3502",
        "3503",
        "3504",
        "3505",
        "3506",
        "3507",
        "3508",
        "3509",
        "4xxx",
        "other",
        "closed_by_client",
    ];

    /// The peer went away by itself.
    pub const BY_CLIENT: CloseCode = CloseCode(27);

    /// The value for a disconnect code.
    pub fn new(code: u32) -> Self {
        match code {
            // The arms bound the values, so that they fit.
            3000..=3014 => Self((code - 3000) as u8),
            3500..=3509 => Self((code - 3500 + 15) as u8),
            4000..=4999 => Self(25),
            _ => Self(26),
        }
    }
}

impl Label for CloseCode {
    const ALL: &'static [Self] = &{
        let mut all = [CloseCode(0); CLOSE_CODES];
        let mut index = 0;
        while index < CLOSE_CODES {
            all[index] = CloseCode(index as u8);
            index += 1;
        }
        all
    };

    fn index(self) -> usize {
        self.0.into()
    }

    fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_name() {
        for code in (3000..=3014).chain(3500..=3509) {
            assert_eq!(CloseCode::new(code).name(), code.to_string());
        }
        for code in 100..=113 {
            assert_eq!(ResultCode::new(code).name(), code.to_string());
        }
        assert_eq!(CloseCode::new(4242).name(), "4xxx");
        assert_eq!(CloseCode::new(1006).name(), "other");
        assert_eq!(CloseCode::BY_CLIENT.name(), "closed_by_client");
        assert_eq!(ResultCode::new(0).name(), "0");
        assert_eq!(ResultCode::new(99).name(), "other");
        assert_eq!(ResultCode::new(4000).name(), "other");
    }

    #[test]
    fn an_index_leads_back_to_its_value() {
        for method in Method::ALL {
            assert_eq!(Method::ALL[method.index()], *method);
            assert_eq!(Method::from_name(method.name()), Some(*method));
        }
        assert_eq!(Method::from_name("evil{channel}"), None);
    }
}
