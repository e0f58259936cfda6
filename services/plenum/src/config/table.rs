//! Every key of the configuration with its meaning: what `config doc` prints, what an unknown key is measured against,
//! and how text from the environment becomes a value. A test holds it equal to the structs.

use std::sync::LazyLock;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// Text that is never shown.
    Secret,
    /// `"10s"`.
    Duration,
    /// A list of texts; as text, separated by spaces or commas.
    Words,
    /// A list of tables; as text, JSON.
    List,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Switch => "bool",
            Kind::Number => "integer",
            Kind::Text => "string",
            Kind::Secret => "secret",
            Kind::Duration => "duration",
            Kind::Words => "list of strings",
            Kind::List => "list of tables",
        }
    }
}

/// One key.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its path; `[]` stands for the elements of a list.
    pub key: String,
    /// What it holds.
    pub kind: Kind,
    /// What it means, with its unit and what is allowed.
    pub about: &'static str,
    /// Not an option of Centrifugo v6, or with another default.
    pub ours: bool,
}

type Entry = (&'static str, Kind, &'static str);

use Kind::{Duration, List, Number, Secret, Switch, Text, Words};

const SERVER: &[Entry] = &[
    ("http_server.address", Text, "Address to listen on; empty: all interfaces."),
    (
        "http_server.port",
        Number,
        "Port for clients, and for everything else unless internal_port is set; 1 to 65535, 0: a free one.",
    ),
    ("http_server.internal_address", Text, "Address of the internal port; empty: as http_server.address."),
    ("http_server.internal_port", Text, "Port for the API, health and metrics; empty: they are on http_server.port."),
    ("http_server.tls", List, ""),
    ("http_server.tls_external", Switch, "TLS on http_server.port only, not on the internal port."),
    ("http_server.internal_tls", List, ""),
    ("http_server.header_timeout", Duration, "! A client has this long to send a complete request head; 1s to 5m."),
    ("http_server.handshake_timeout", Duration, "! Longest TLS handshake; 1s to 5m."),
    (
        "http_server.trusted_proxies",
        Words,
        "! Addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For says where a client is, for limits by address; empty: none.",
    ),
    ("http_server.max_header_size", Number, "! Largest request head in bytes, 8192 to 1048576; beyond it 431."),
    (
        "http_server.max_http_connections",
        Number,
        "! Connections in handshake or plain HTTP at once (WebSocket connections do not count), 1 to 1000000; beyond it new ones wait.",
    ),
    ("log.level", Text, "none, error, warn, info, debug or trace; ours: also a list of target=level with commas."),
    ("log.format", Text, "! json (one object a line) or pretty (for people). Logs go to standard error."),
];

const TLS: &[Entry] = &[
    ("enabled", Switch, "Encrypts this port."),
    ("cert_pem", Text, "Path of a PEM file with the certificate chain; read again when it changes."),
    ("key_pem", Text, "Path of a PEM file with the private key; read again when it changes."),
];

const CLIENT: &[Entry] = &[
    (
        "client.allowed_origins",
        Words,
        "Origins of pages that may connect, exactly as browsers send them (https://example.com), with * as a wildcard; \"*\" allows all. Clients that send no Origin are not browsers and may connect. Empty: no page may.",
    ),
    ("client.token", List, ""),
    ("client.subscription_token", List, ""),
    (
        "client.allow_anonymous_connect_without_token",
        Switch,
        "Clients may connect without a token, as the anonymous user with an empty id.",
    ),
    ("client.disallow_anonymous_connection_tokens", Switch, "Refuses connection tokens whose user id is empty."),
    ("client.ping_interval", Duration, "How often the server pings; 1s to 1h."),
    (
        "client.pong_timeout",
        Duration,
        "! A ping unanswered for this long is a missed beat; any frame is a sign of life. Shorter than ping_interval.",
    ),
    (
        "client.missed_pongs",
        Number,
        "! Missed beats in a row that close the connection with 3012; 1 to 100 (Centrifugo's behaviour is 1).",
    ),
    (
        "client.stale_close_delay",
        Duration,
        "A connection without a valid connect is closed after this, with 3502; 1s to 1h.",
    ),
    (
        "client.expired_close_delay",
        Duration,
        "An expired connection that is not refreshed is closed after this, with 3005; at most 1h.",
    ),
    (
        "client.expired_sub_close_delay",
        Duration,
        "An expired subscription that is not refreshed ends after this; at most 1h.",
    ),
    (
        "client.queue_max_size",
        Number,
        "Bytes that may wait to be written to one connection, 65536 to 1073741824; beyond it 3008 (slow).",
    ),
    (
        "client.channel_limit",
        Number,
        "Channels that one connection may be subscribed to, 1 to 1000000; beyond it error 106.",
    ),
    (
        "client.max_in_flight_commands",
        Number,
        "! Commands of one connection under way at once, 1 to 65536; at the bound its socket is not read.",
    ),
    (
        "client.max_frames_per_second",
        Number,
        "! Frames per second from one connection, with a burst of as many; beyond it 3013. 0: no bound.",
    ),
    ("client.connection_limit", Number, "Connections of this process; beyond it handshakes get 503. 0: no bound."),
    (
        "client.connection_rate_limit",
        Number,
        "New connections per second of this process; beyond it handshakes get 503. 0: no bound.",
    ),
    (
        "client.user_connection_limit",
        Number,
        "Connections of one user, with redis.servers to all replicas together, else to this process; beyond it 3504. 0: no bound.",
    ),
    (
        "client.on_unavailable.user_connections",
        Text,
        "! While Redis does not answer, client.user_connection_limit of all replicas fails open (this replica's own count holds) or closed (connects get the temporary error 100).",
    ),
    (
        "client.on_unavailable.subscribers",
        Text,
        "! The same for subscriber_limit of namespaces: open, or closed (subscribes get the temporary error 100).",
    ),
    (
        "client.rate_limit.user.connect",
        Text,
        "! Connects of one user, with redis.servers to all replicas together, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.user.subscribe",
        Text,
        "! Subscribes of one user, to one replica, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.user.publish",
        Text,
        "! Publishes of one user, with redis.servers to all replicas together, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.user.rpc",
        Text,
        "! RPC calls of one user, to one replica, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.address.connect",
        Text,
        "! Connects from one address (IPv4, or a /64 network of IPv6), with redis.servers to all replicas together, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.address.subscribe",
        Text,
        "! Subscribes from one address (IPv4, or a /64 network of IPv6), to one replica, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.address.publish",
        Text,
        "! Publishes from one address (IPv4, or a /64 network of IPv6), with redis.servers to all replicas together, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.rate_limit.address.rpc",
        Text,
        "! RPC calls from one address (IPv4, or a /64 network of IPv6), to one replica, such as 20/1s (1 to 1000000 per 1s to 1h); beyond it error 111. Empty: no bound.",
    ),
    (
        "client.on_unavailable.connect_rate",
        Text,
        "! The same for client.rate_limit.….connect: open, or closed (connects get error 111).",
    ),
    (
        "client.on_unavailable.publish_rate",
        Text,
        "! The same for client.rate_limit.….publish: open, or closed (publishes get error 111).",
    ),
    (
        "client.presence_grace",
        Duration,
        "! How long presence and leave of a lost connection are held back, so that one that resumes neither leaves nor joins; at most 60s. 0s: not at all.",
    ),
    (
        "client.resume.enabled",
        Switch,
        "! Connect replies carry a token in data.plenum.resume that the client may return in data of its next connect, to come back as what it was.",
    ),
    (
        "client.resume.secret",
        Secret,
        "! Secret of these tokens, at least 32 characters, the same on all replicas. Empty: the replicas share a random one.",
    ),
    ("client.resume.ttl", Duration, "! How long after the connect that gave it such a token can be used, 1m to 720h."),
    ("client.connect_include_server_time", Switch, "Puts the server's time into connect replies."),
    ("client.history_max_publication_limit", Number, "Publications in one history reply, 1 to 1000000."),
    (
        "client.recovery_max_publication_limit",
        Number,
        "Publications in the reply to a recovery, 1 to 1000000. Here the rest follows as publications; Centrifugo does not recover who missed more.",
    ),
    (
        "client.recovery_max_bytes",
        Number,
        "! Payload bytes in the reply to a recovery, 1024 to 524288; the rest follows as publications.",
    ),
    (
        "client.user_id_http_header",
        Text,
        "HTTP header of the handshake that names the user, instead of a token; only behind a proxy that sets it. Empty: off.",
    ),
    (
        "client.insecure",
        Switch,
        "Clients need no token, may do everything but subscribe to private channels without one, and never expire: for development.",
    ),
    (
        "client.insecure_public",
        Switch,
        "! Needed besides client.insecure when the server listens on more than a loopback address.",
    ),
    (
        "client.subscribe_to_user_personal_channel.enabled",
        Switch,
        "Subscribes every connection with a user id to the user's personal channel.",
    ),
    (
        "client.subscribe_to_user_personal_channel.personal_channel_namespace",
        Text,
        "Namespace of the personal channel; empty: none.",
    ),
];

const TOKEN: &[Entry] = &[
    ("hmac_secret_key", Secret, "Secret for HS256, HS384 and HS512."),
    ("hmac_previous_secret_key", Secret, "The secret before the last rotation, accepted too."),
    (
        "hmac_previous_secret_key_valid_until",
        Number,
        "Unix seconds after which the previous secret is not accepted any more; 0: without end.",
    ),
    ("rsa_public_key", Text, "PEM for RS256, RS384 and RS512; 2048 to 8192 bits."),
    ("ecdsa_public_key", Text, "PEM for ES256, ES384 or ES512."),
    ("ed25519_public_key", Text, "! PEM for EdDSA."),
    (
        "jwks_public_endpoint",
        Text,
        "URL of a JSON Web Key Set; once set, the other keys are not used. {{name}} stands for a named group of issuer_regex or audience_regex.",
    ),
    (
        "insecure_skip_jwks_endpoint_safety_check",
        Switch,
        "Allows named groups in jwks_public_endpoint that match more than a list of fixed values.",
    ),
    ("audience", Text, "The aud claim must hold this; empty: not checked."),
    ("audience_regex", Text, "A value of the aud claim must match this; empty: not checked."),
    ("issuer", Text, "The iss claim must be this; empty: not checked."),
    ("issuer_regex", Text, "The iss claim must match this; empty: not checked."),
    ("user_id_claim", Text, "Claim that holds the user id, letters and underscores; empty: sub."),
];

const CHANNEL: &[Entry] = &[
    ("channel.without_namespace", List, ""),
    ("channel.namespaces", List, "Namespaces, each a table with a name and options."),
    (
        "channel.history_meta_ttl",
        Duration,
        "How long a channel's last position outlives its newest publication; whole seconds.",
    ),
    (
        "channel.idempotent_result_ttl",
        Duration,
        "! How long the first result of an idempotency key is remembered in Redis, beyond the log's own window; 1s to 24h.",
    ),
    ("channel.max_length", Number, "Bytes in a channel name, 1 to 255; beyond it error 107."),
    ("channel.private_prefix", Text, "Channels whose name starts with this need a subscription token; empty: none do."),
    ("channel.namespace_boundary", Text, "Separates the namespace from the rest of a name; empty: no namespaces."),
    (
        "channel.user_boundary",
        Text,
        "Separates the allowed users from the rest of a name; empty: no user-limited channels.",
    ),
    ("channel.user_separator", Text, "Separates the allowed users; empty: one user only."),
    (
        "channel.max_publication_size",
        Number,
        "! Payload bytes of one publication, from clients and by API alike, 1 to 983040; beyond it error 107.",
    ),
];

const NAMESPACE: &[Entry] = &[
    ("presence", Switch, "Keeps who is subscribed."),
    ("join_leave", Switch, "Tells subscribers who ask for it, and may read presence, when others join and leave."),
    ("force_push_join_leave", Switch, "Tells all subscribers; needs join_leave."),
    ("history_size", Number, "Newest publications that are visible; 0: no history. Needs history_ttl."),
    (
        "history_ttl",
        Duration,
        "History is visible until this long after the newest publication; whole seconds. Needs history_size.",
    ),
    ("history_meta_ttl", Duration, "Overrides channel.history_meta_ttl; 0s: does not."),
    ("force_positioning", Switch, "Every subscription learns when something could have been lost."),
    ("allow_positioning", Switch, "Subscriptions that ask for it do; so do those that may read history."),
    ("force_recovery", Switch, "Every subscription recovers what it missed; needs history."),
    ("allow_recovery", Switch, "Subscriptions that ask for it do; so do those that may read history."),
    ("force_recovery_mode", Text, "stream (all that was missed) or cache (the latest publication only)."),
    (
        "allow_subscribe_for_anonymous",
        Switch,
        "Anonymous users may subscribe where allow_subscribe_for_client lets clients.",
    ),
    ("allow_subscribe_for_client", Switch, "Users may subscribe without a subscription token."),
    ("allow_publish_for_anonymous", Switch, "Anonymous users may publish where another allow_publish_… lets them."),
    ("allow_publish_for_subscriber", Switch, "Subscribers may publish."),
    ("allow_publish_for_client", Switch, "Any client may publish."),
    (
        "allow_presence_for_anonymous",
        Switch,
        "Anonymous users may read presence where another allow_presence_… lets them.",
    ),
    ("allow_presence_for_subscriber", Switch, "Subscribers may read presence."),
    ("allow_presence_for_client", Switch, "Any client may read presence."),
    (
        "allow_history_for_anonymous",
        Switch,
        "Anonymous users may read history where another allow_history_… lets them.",
    ),
    ("allow_history_for_subscriber", Switch, "Subscribers may read history."),
    ("allow_history_for_client", Switch, "Any client may read history."),
    ("allow_user_limited_channels", Switch, "Names may end in #user1,user2, who alone may subscribe."),
    ("channel_regex", Text, "What the name after the namespace must match, unanchored; empty: any ASCII name."),
    (
        "session",
        Switch,
        "! A channel is a session of people, such as planning poker or a chat room: subscriber_limit is 50 where it is not set.",
    ),
    (
        "subscriber_limit",
        Number,
        "! Subscribers of one channel, with redis.servers on all replicas together, else on this one; beyond it error 106. 0: no bound, or 50 with session.",
    ),
    (
        "durability",
        Text,
        "! log (acknowledged, then delivered exactly once and in order) or none (at most once, no position, no history).",
    ),
    (
        "retention_group",
        Text,
        "! Group of nats.retention_groups that keeps these channels; empty: the default group. Takes effect after a restart.",
    ),
];

const NATS: &[Entry] = &[
    (
        "nats.servers",
        Words,
        "! Addresses of NATS servers with JetStream (nats://host:port or tls://host:port), so that several replicas are one server; empty: the log is in this process.",
    ),
    ("nats.user", Text, "! User at the NATS servers; with nats.password."),
    ("nats.password", Secret, "! The user's password."),
    ("nats.token", Secret, "! A token, instead of a user."),
    ("nats.nkey_seed_file", Text, "! Path of a file with the seed of an nkey, instead of a user."),
    ("nats.creds_file", Text, "! Path of a .creds file (JWT and seed), instead of a user; read at every connect."),
    ("nats.tls.enabled", Switch, "! Refuses servers without TLS; servers that require it get it anyway."),
    ("nats.tls.handshake_first", Switch, "! TLS before the server's first line, for servers set up so."),
    ("nats.tls.server_ca_pem", Text, "! Path of a PEM file with the CA to trust instead of the system's."),
    ("nats.tls.cert_pem", Text, "! Path of a PEM file with the client's certificate chain; with key_pem."),
    ("nats.tls.key_pem", Text, "! Path of a PEM file with the client certificate's key."),
    (
        "nats.prefix",
        Text,
        "! First token of subjects and part of streams' names, 1 to 32 of a-z A-Z 0-9 - _; the same on all replicas.",
    ),
    ("nats.replicas", Number, "! Copies of each stream: 1, 3 or 5; the same on all replicas."),
    ("nats.shards", Number, "! Streams of the default group, 1 to 64; fixed once data exists under the prefix."),
    ("nats.max_age", Duration, "! Publications older than this leave the log, at least 10m. Can be raised later."),
    (
        "nats.max_bytes",
        Number,
        "! Bytes of one shard, at least 1048576; beyond them the oldest publications leave. 0: what the servers hold.",
    ),
    ("nats.retention_groups", List, "! Further groups of streams with a retention of their own."),
    (
        "nats.append_patience",
        Duration,
        "! How long a publication without acknowledgement is tried before the publisher is told; 15s to below 45s.",
    ),
    ("nats.append_lanes", Number, "! Tasks that append, 1 to 64; a channel belongs to one."),
    (
        "nats.append_window",
        Number,
        "! Unacknowledged appends of one connection, 1 to 65536; the lanes on it share them.",
    ),
    (
        "nats.append_queue",
        Number,
        "! Appends that wait in one lane besides those, 1 to 1000000; beyond it publishing fails as unavailable.",
    ),
    (
        "nats.delivery_workers",
        Number,
        "! Keyed workers that deliver publications and carry out commands, 1 to 4096; a channel belongs to one.",
    ),
    ("nats.pool.publishing", Number, "! Connections for publishing and requests at start, 1 to 64."),
    ("nats.pool.min_publishing", Number, "! Fewest of them when resized by load."),
    ("nats.pool.max_publishing", Number, "! Most of them when resized by load, at most 64."),
    ("nats.pool.subscribing", Number, "! Connections that carry subscriptions, 1 to 64; fixed until a restart."),
    ("nats.pool.grow_above", Number, "! One publishing connection more while each has more requests in flight."),
    ("nats.pool.shrink_below", Number, "! One publishing connection less while each has fewer in flight."),
    ("nats.pool.recycle_after", Duration, "! Age at which a publishing connection is replaced; 1m to 168h."),
    ("nats.pool.probe_interval", Duration, "! Time between measurements of a connection's round trip; 1s to 10m."),
    ("nats.pool.probe_timeout", Duration, "! A measurement without answer has failed after this; 100ms to 1m."),
    (
        "nats.pool.ping_interval",
        Duration,
        "! Time between pings; the third unanswered one ends a connection. 500ms to 1m.",
    ),
    ("nats.pool.connect_timeout", Duration, "! Limit of one attempt to connect; 100ms to 1m."),
    ("nats.pool.backoff_min", Duration, "! Upper bound of the first delay before connecting again; 10ms to 1m."),
    ("nats.pool.backoff_max", Duration, "! Upper bound of every such delay; 10ms to 10m."),
    ("nats.pool.lease_limit", Duration, "! A lease held longer is reported and reclaimed; 1s to 1h."),
    ("nats.pool.window", Number, "! Unacknowledged publishes of one connection, 1 to 1000000."),
    (
        "nats.pool.subscription_capacity",
        Number,
        "! Messages that one subscription buffers, 256 to 1000000; beyond it some are dropped and then repaired.",
    ),
    ("nats.pool.discover_servers", Switch, "! Uses servers that the configured ones advertise, too."),
    ("nats.report.memory", Number, "! The report warns of more bytes of resident memory; 0: of none."),
    ("nats.report.tasks", Number, "! It warns of more tasks; 0: of none."),
    ("nats.report.queue_percent", Number, "! It warns of a queue that is fuller, 1 to 100."),
    ("nats.report.round_trip", Duration, "! It warns of a connection whose round trip is longer."),
    ("nats.report.latency_p99", Duration, "! It warns of workers and subscriptions whose 99th percentile is longer."),
    ("nats.report.lease_age", Duration, "! It warns of a lease of a connection that is older."),
];

const RETENTION_GROUP: &[Entry] = &[
    ("name", Text, "! Name of the group, as nats.prefix; default is the name of the group that is always there."),
    ("shards", Number, "! As nats.shards."),
    ("max_age", Duration, "! As nats.max_age."),
    ("max_bytes", Number, "! As nats.max_bytes."),
];

const REDIS: &[Entry] = &[
    (
        "redis.servers",
        Words,
        "! Addresses of Redis (host:port; some nodes of a cluster), for presence, sessions and limits of all replicas together; empty: each replica has its own. Needs nats.servers.",
    ),
    ("redis.mode", Text, "! cluster or standalone."),
    ("redis.user", Text, "! ACL user at Redis; with redis.password."),
    ("redis.password", Secret, "! The user's password, or that of the default user."),
    ("redis.tls.enabled", Switch, "! Speaks TLS with Redis."),
    ("redis.tls.server_ca_pem", Text, "! Path of a PEM file with the CA to trust instead of the system's."),
    ("redis.tls.cert_pem", Text, "! Path of a PEM file with the client's certificate chain; with key_pem."),
    ("redis.tls.key_pem", Text, "! Path of a PEM file with the client certificate's key."),
    ("redis.prefix", Text, "! Begins every key: 1 to 32 of a-z A-Z 0-9 - _; the same on all replicas."),
    (
        "redis.key_secret",
        Secret,
        "! Decides in which slots the keys of an id lie, at least 32 characters, the same on all replicas. Empty: redis.prefix does.",
    ),
    ("redis.connect_timeout", Duration, "! Limit of one attempt to connect; 50ms to 900ms."),
    (
        "redis.command_timeout",
        Duration,
        "! Limit of one call; 50ms to 900ms. Beyond it the caller gets a temporary error.",
    ),
];

const SERVICES: &[Entry] = &[
    ("http_api.disabled", Switch, "Switches the server API off."),
    ("http_api.handler_prefix", Text, "Path of the server API."),
    ("http_api.key", Secret, "Key that API requests must carry; without one every request is refused."),
    ("http_api.error_mode", Text, "How errors are told: empty (in the body, status 200) or transport (by the status)."),
    ("http_api.external", Switch, "Serves the API on http_server.port although internal_port is set."),
    ("http_api.insecure", Switch, "No key is asked for: whoever reaches the port may use the API."),
    ("websocket.disabled", Switch, "Switches the WebSocket endpoint off."),
    ("websocket.handler_prefix", Text, "Path of the WebSocket endpoint."),
    (
        "websocket.write_timeout",
        Duration,
        "! A client that takes nothing at all for this long is disconnected; 100ms to 5m.",
    ),
    (
        "websocket.message_size_limit",
        Number,
        "Bytes in one message from a client, 1024 to 16777216; beyond it the connection is closed.",
    ),
    ("prometheus.enabled", Switch, "! Serves metrics (Centrifugo's default is false)."),
    ("prometheus.handler_prefix", Text, "Path of the metrics."),
    ("health.enabled", Switch, "! Serves the health endpoints (Centrifugo's default is false)."),
    ("health.handler_prefix", Text, "Path of the health check."),
    ("node.name", Text, "Name of this process in logs and in the API's info; empty: host name and port."),
    ("shutdown.timeout", Duration, "What is open after the drain, or after SIGINT, has this long to end; 1s to 1h."),
    (
        "shutdown.drain_time",
        Duration,
        "! After SIGTERM, connections are asked to move evenly over this time; at most 1h.",
    ),
    (
        "shutdown.grace_period",
        Duration,
        "! When whoever sends SIGTERM kills the process: drain_time and timeout are shortened to fit; 0s: never, else 4s to 2h.",
    ),
];

const CONSUMERS: &[Entry] = &[
    (
        "consumers",
        List,
        "Consumers of commands of the server API, run by the roles worker and serve, each a table (docs/consumers.md).",
    ),
    ("consumers[].enabled", Switch, "Runs this consumer."),
    ("consumers[].name", Text, "Its name in metrics and logs, 1 to 32 of a-z A-Z 0-9 - _; unique."),
    ("consumers[].type", Text, "nats_jetstream, the only type here; its servers are those of nats.servers."),
    ("consumers[].nats_jetstream.stream_name", Text, "The stream that holds the commands; somebody else makes it."),
    ("consumers[].nats_jetstream.subjects", Words, "Subjects of the stream to take; empty: all."),
    (
        "consumers[].nats_jetstream.durable_consumer_name",
        Text,
        "Name of the consumer, which is made here; of all processes with this name one at a time gets commands.",
    ),
    (
        "consumers[].nats_jetstream.deliver_policy",
        Text,
        "! Where a new consumer begins: all (the oldest command) or new (the first after its making, as Centrifugo's).",
    ),
    (
        "consumers[].nats_jetstream.max_ack_pending",
        Number,
        "! Commands taken and not finished, 1 to 10000; the rest stays in the stream.",
    ),
    (
        "consumers[].nats_jetstream.tries",
        Number,
        "! Tries of a command that fails, 1 to 100; then it goes to the dead letters.",
    ),
    (
        "consumers[].nats_jetstream.retry_delay",
        Duration,
        "! Pause after the first failed try, 10ms to 1m; doubles with each, at most 1m. What follows on the channel waits.",
    ),
    (
        "consumers[].nats_jetstream.max_message_size",
        Number,
        "! Longest message in bytes, 1024 to 8388608; a longer one goes to the dead letters.",
    ),
    (
        "consumers[].nats_jetstream.method_header",
        Text,
        "Header that names the method; a message with it is the request alone. Empty: none does.",
    ),
    (
        "consumers[].nats_jetstream.publication_data_mode.enabled",
        Switch,
        "A message is a payload to publish, and its headers say the rest.",
    ),
    (
        "consumers[].nats_jetstream.publication_data_mode.channels_header",
        Text,
        "Header with the channels, commas between them.",
    ),
    (
        "consumers[].nats_jetstream.publication_data_mode.idempotency_key_header",
        Text,
        "Header with the idempotency key.",
    ),
    (
        "consumers[].nats_jetstream.publication_data_mode.delta_header",
        Text,
        "Header with the delta flag; not supported.",
    ),
    ("consumers[].nats_jetstream.publication_data_mode.version_header", Text, "Header with the version."),
    ("consumers[].nats_jetstream.publication_data_mode.version_epoch_header", Text, "Header with the version's epoch."),
    (
        "consumers[].nats_jetstream.publication_data_mode.tags_header_prefix",
        Text,
        "Headers that begin so are tags, named by the rest.",
    ),
];

/// All keys, in the order in which they are explained.
pub fn rows() -> &'static [Row] {
    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
        let mut rows = Vec::new();
        for (key, kind, about) in [SERVER, CLIENT, CHANNEL, NATS, REDIS, CONSUMERS, SERVICES].into_iter().flatten() {
            match *key {
                "http_server.tls" | "http_server.internal_tls" => group(&mut rows, key, TLS),
                "client.token" => group(&mut rows, key, TOKEN),
                "client.subscription_token" => {
                    let about = "Subscription tokens have keys and rules of their own, those below.";
                    rows.push(row(format!("{key}.enabled"), Switch, about));
                    group(&mut rows, key, TOKEN);
                }
                "channel.without_namespace" => group(&mut rows, key, NAMESPACE),
                "channel.namespaces" => {
                    rows.push(row((*key).into(), *kind, about));
                    let about = "Name of the namespace: two or more of a-z A-Z 0-9 - _ .";
                    rows.push(row("channel.namespaces[].name".into(), Text, about));
                    group(&mut rows, "channel.namespaces[]", NAMESPACE);
                }
                "nats.retention_groups" => {
                    rows.push(row((*key).into(), *kind, about));
                    group(&mut rows, "nats.retention_groups[]", RETENTION_GROUP);
                }
                _ => rows.push(row((*key).into(), *kind, about)),
            }
        }
        rows
    });
    &ROWS
}

fn group(rows: &mut Vec<Row>, prefix: &str, entries: &[Entry]) {
    rows.extend(entries.iter().map(|(key, kind, about)| row(format!("{prefix}.{key}"), *kind, about)));
}

/// A leading `!` in the table marks what is ours.
fn row(key: String, kind: Kind, about: &'static str) -> Row {
    match about.strip_prefix("! ") {
        Some(about) => Row { key, kind, about, ours: true },
        None => Row { key, kind, about, ours: false },
    }
}

/// The row of a path; `[3]` in it is taken for `[]`.
pub fn find(path: &str) -> Option<&'static Row> {
    let pattern = pattern(path);
    rows().iter().find(|row| row.key == pattern)
}

/// Whether keys lie below a path.
pub fn is_section(path: &str) -> bool {
    let pattern = pattern(path);
    rows().iter().any(|row| row.key.strip_prefix(&pattern).is_some_and(|rest| rest.starts_with('.')))
}

/// Keys directly below a section, for error messages.
pub fn children(section: &str) -> Vec<&'static str> {
    let prefix = if section.is_empty() { String::new() } else { format!("{}.", pattern(section)) };
    let mut names: Vec<&'static str> = Vec::new();
    for row in rows() {
        let Some(rest) = row.key.strip_prefix(&prefix) else { continue };
        let name = rest.split(['.', '[']).next().unwrap_or(rest);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn pattern(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => {
                inside = true;
                pattern.push(c);
            }
            ']' => {
                inside = false;
                pattern.push(c);
            }
            _ if inside => {}
            _ => pattern.push(c),
        }
    }
    pattern
}
