//! What an operator sets for clients and channels. Names, defaults and meaning are Centrifugo v6's (`client.*`,
//! `channel.*`) unless a field says "ours".

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{OnUnavailable, RateLimits};
use crate::namespace::NamespaceOptions;

/// Settings of the domain, as read from configuration. [`Settings::compile`] checks them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `client`: what holds for each connection.
    pub client: ClientSettings,
    /// `channel`: names and rules of channels.
    pub channel: ChannelSettings,
}

/// `client`: what holds for each connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// How often the server pings. Default 25 s; 1 s to 1 h.
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    /// A ping unanswered for this long is a missed beat; any frame is a sign of life. Default 10 s (Centrifugo 8 s);
    /// shorter than `ping_interval`.
    #[serde(with = "duration")]
    pub pong_timeout: Duration,
    /// Ours: this many missed beats in a row close the connection with 3012. Default 2; at least 1. Centrifugo's
    /// behaviour is 1.
    pub missed_pongs: u32,
    /// A connection that has not sent a valid connect for this long is closed with 3502. Default 10 s.
    #[serde(with = "duration")]
    pub stale_close_delay: Duration,
    /// How long after its expiry a connection that was not refreshed is closed with 3005. Default 25 s.
    #[serde(with = "duration")]
    pub expired_close_delay: Duration,
    /// How long after its expiry a subscription that was not refreshed is ended. Default 25 s.
    #[serde(with = "duration")]
    pub expired_sub_close_delay: Duration,
    /// Most bytes that may wait to be written to one connection; beyond it the connection is closed with 3008 (slow).
    /// Default 1048576.
    pub queue_max_size: usize,
    /// Most channels that one connection may be subscribed to; a further subscribe gets error 106. Default 128.
    pub channel_limit: usize,
    /// Ours: commands of one connection that may be under way at once; at the bound the server stops reading from the
    /// socket until one ends. Default 64.
    pub max_in_flight_commands: usize,
    /// Ours: frames per second that one connection may send, with a burst of the same number; beyond it the connection
    /// is closed with 3013. Default 1000; 0: no bound.
    pub max_frames_per_second: u32,
    /// Most connections of this process; a further handshake is answered with 503. Default 0: no bound.
    pub connection_limit: usize,
    /// Most new connections per second of this process; a further handshake is answered with 503. Default 0: no bound.
    pub connection_rate_limit: u32,
    /// Most connections of one user, to all replicas where these share counts, else to this process; a further one is
    /// closed with 3504. Anonymous users are not counted. Default 0: no bound.
    pub user_connection_limit: usize,
    /// Ours: `client.rate_limit`.
    pub rate_limit: RateLimits,
    /// Ours: `client.on_unavailable`.
    pub on_unavailable: OnUnavailable,
    /// Lets clients connect without a token, as the anonymous user with an empty id. Default false.
    pub allow_anonymous_connect_without_token: bool,
    /// Refuses connection tokens whose user id is empty. Default false.
    pub disallow_anonymous_connection_tokens: bool,
    /// No token is needed, clients may do everything but subscribe to private channels without a token, and connections
    /// never expire: for development. Default false.
    pub insecure: bool,
    /// Takes the user id from this HTTP header of the handshake instead of a token; only behind a proxy that sets it.
    /// Default empty: off.
    pub user_id_http_header: String,
    /// Adds the server's time to connect replies. Default false.
    pub connect_include_server_time: bool,
    /// Most publications in one history reply; also what a client gets that asks for more or for all. Default 300.
    pub history_max_publication_limit: usize,
    /// Most publications in the subscribe reply of a recovery. Centrifugo does not recover a client that missed more;
    /// here the rest follows as publications, in order. Default 300.
    pub recovery_max_publication_limit: usize,
    /// Ours: most payload bytes in the subscribe reply of a recovery; one publication is always sent. The rest follows
    /// as publications. Default 262144; at most 524288, so that the reply with its envelopes fits the 1 MiB frame that
    /// SDKs take.
    pub recovery_max_bytes: usize,
    /// `client.subscribe_to_user_personal_channel`.
    pub subscribe_to_user_personal_channel: PersonalChannel,
    /// Ours: how long the presence entry and the leave of a connection that was lost are held back, so that one that
    /// resumes neither leaves nor joins. Default 3 s; at most 60 s; 0: not at all.
    #[serde(with = "duration")]
    pub presence_grace: Duration,
    /// Ours: `client.resume`.
    pub resume: ResumeSettings,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            missed_pongs: 2,
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            queue_max_size: 1_048_576,
            channel_limit: 128,
            max_in_flight_commands: 64,
            max_frames_per_second: 1000,
            connection_limit: 0,
            connection_rate_limit: 0,
            user_connection_limit: 0,
            rate_limit: RateLimits::default(),
            on_unavailable: OnUnavailable::default(),
            allow_anonymous_connect_without_token: false,
            disallow_anonymous_connection_tokens: false,
            insecure: false,
            user_id_http_header: String::new(),
            connect_include_server_time: false,
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
            recovery_max_bytes: 262_144,
            subscribe_to_user_personal_channel: PersonalChannel::default(),
            presence_grace: Duration::from_secs(3),
            resume: ResumeSettings::default(),
        }
    }
}

/// `client.resume`: connections that come back with their client id, identity and server-side subscriptions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResumeSettings {
    /// Connect replies carry a token in `data.plenum.resume`, which the client may return in `data` of its next connect.
    /// Default true.
    pub enabled: bool,
    /// Secret of which the key of these tokens is made, at least 32 characters; the same on all replicas. Default empty:
    /// the replicas share a random one through the ledger.
    pub secret: ResumeSecret,
    /// How long after the connect that gave it a token can be used. Default 12 h; 1 min to 30 days.
    #[serde(with = "duration")]
    pub ttl: Duration,
}

impl Default for ResumeSettings {
    fn default() -> Self {
        Self { enabled: true, secret: ResumeSecret::default(), ttl: Duration::from_secs(12 * 3600) }
    }
}

/// A secret that is not printed: what is shown of it says only whether it is set.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ResumeSecret(String);

impl ResumeSecret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for ResumeSecret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl std::fmt::Debug for ResumeSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "\"[set]\"" })
    }
}

impl Serialize for ResumeSecret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "[set]" })
    }
}

/// `client.subscribe_to_user_personal_channel`: a server-side subscription of every user to a channel of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersonalChannel {
    /// Subscribes every connection that has a user id to `#<user id>`. Default false.
    pub enabled: bool,
    /// Namespace of the personal channel: `<namespace>:#<user id>`. Default empty: none.
    pub personal_channel_namespace: String,
}

/// `channel`: names and rules of channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelSettings {
    /// Options of channels whose name has no namespace.
    pub without_namespace: NamespaceOptions,
    /// Namespaces, each with its name and options.
    pub namespaces: Vec<NamespaceOptions>,
    /// How long a channel's last position outlives its newest publication. Default 720 h.
    #[serde(with = "duration")]
    pub history_meta_ttl: Duration,
    /// Ours: how long the first result of an idempotency key is remembered in Redis, beyond the log's own window.
    /// Default 5 min; 1 s to 24 h.
    #[serde(with = "duration")]
    pub idempotent_result_ttl: Duration,
    /// Most bytes in a channel name; a longer one gets error 107. Default and most 255.
    pub max_length: usize,
    /// Channels whose name starts with this need a subscription token. Default `$`; empty: none do.
    pub private_prefix: String,
    /// Separates the namespace from the rest of a channel name. Default `:`; empty: there are no namespaces.
    pub namespace_boundary: String,
    /// Separates the list of allowed users from the rest of a user-limited channel's name. Default `#`; empty: there
    /// are no user-limited channels.
    pub user_boundary: String,
    /// Separates the users of a user-limited channel's name. Default `,`; empty: one user only.
    pub user_separator: String,
    /// Ours: most payload bytes of one publication, from clients and by API alike; a larger one gets error 107.
    /// Default 61440: with its envelope it fits a frame of 64 KiB. Most 983040, so that it fits the 1 MiB that message
    /// brokers and SDKs accept.
    pub max_publication_size: usize,
}

/// Largest allowed `channel.max_publication_size`, bytes.
pub const MAX_PUBLICATION_BYTES: usize = 983_040;

impl Default for ChannelSettings {
    fn default() -> Self {
        Self {
            without_namespace: NamespaceOptions::default(),
            namespaces: Vec::new(),
            history_meta_ttl: Duration::from_secs(720 * 3600),
            idempotent_result_ttl: Duration::from_secs(300),
            max_length: 255,
            private_prefix: "$".into(),
            namespace_boundary: ":".into(),
            user_boundary: "#".into(),
            user_separator: ",".into(),
            max_publication_size: 61_440,
        }
    }
}

/// Durations as configuration writes them: `"10s"`, `"720h"`, `"300ms"`, `"1h30m"`, `"1.5s"`. For
/// `#[serde(with = "duration")]`.
///
/// Units: `ns`, `us`, `ms`, `s`, `m`, `h`, as in Centrifugo. Negative durations are refused; the number 0 is accepted.
pub mod duration {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    /// What a duration looks like, for error messages.
    pub const EXPECTED: &str = "a duration such as \"10s\", \"300ms\" or \"1h30m\"";

    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];

    /// Reads a duration; `None` when the text is not one or exceeds what 64 bits of nanoseconds hold.
    pub fn parse(text: &str) -> Option<Duration> {
        if text == "0" {
            return Some(Duration::ZERO);
        }
        if text.is_empty() {
            return None;
        }
        let mut rest = text;
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, tail) = rest.split_at(digits);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let nanos = UNITS.iter().find(|(name, _)| *name == unit)?.1;
            total = total.checked_add(scaled(number, nanos)?)?;
            rest = tail;
        }
        Some(Duration::from_nanos(total))
    }

    /// `number` (digits with at most one point) times `nanos`.
    fn scaled(number: &str, nanos: u64) -> Option<u64> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut sum = whole.checked_mul(nanos)?;
        let mut unit = nanos;
        for digit in fraction.bytes() {
            unit /= 10;
            sum = sum.checked_add(u64::from(digit - b'0') * unit)?;
        }
        Some(sum)
    }

    /// Writes a duration with the largest unit that holds it exactly.
    pub fn format(value: &Duration) -> String {
        let nanos = value.as_nanos();
        if nanos == 0 {
            return "0s".into();
        }
        let (unit, size) = [
            ("h", 3_600_000_000_000u128),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
        ]
        .into_iter()
        .find(|(_, size)| nanos.is_multiple_of(*size))
        .unwrap_or(("ns", 1));
        format!("{}{unit}", nanos / size)
    }

    /// Serializes as [`format`] writes it.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(value))
    }

    /// Deserializes what [`parse`] reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Duration, E> {
                match number {
                    0 => Ok(Duration::ZERO),
                    other => Err(E::invalid_value(serde::de::Unexpected::Unsigned(other), &self)),
                }
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Duration, E> {
                match number {
                    0 => Ok(Duration::ZERO),
                    other => Err(E::invalid_value(serde::de::Unexpected::Signed(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        let cases = [
            ("10s", 10_000, "10s"),
            ("720h", 2_592_000_000, "720h"),
            ("300ms", 300, "300ms"),
            ("1h30m", 5_400_000, "90m"),
            ("1.5s", 1_500, "1500ms"),
            (".5s", 500, "500ms"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("24h0m0s", 86_400_000, "24h"),
            ("1000ms", 1_000, "1s"),
        ];
        for (text, millis, written) in cases {
            let value = duration::parse(text).unwrap_or_else(|| panic!("{text} is a duration"));
            assert_eq!(value, Duration::from_millis(millis), "{text}");
            assert_eq!(duration::format(&value), written, "{text}");
        }
        for text in ["", "10", "s", "-1s", "10 s", "1.2.3s", ".s", "10d", "99999999999h", "1h30"] {
            assert_eq!(duration::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        let error = serde_json::from_str::<Settings>(r#"{"client": {"ping_intervall": "25s"}}"#).unwrap_err();
        assert!(error.to_string().contains("ping_intervall"), "{error}");
        let error = serde_json::from_str::<Settings>(r#"{"channel": {"namespaces": [{"nam": "a"}]}}"#).unwrap_err();
        assert!(error.to_string().contains("`nam`"), "{error}");
    }

    #[test]
    fn settings_survive_a_round_trip() {
        let settings = Settings::default();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), settings);
    }
}
