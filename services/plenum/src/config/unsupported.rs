//! Options of Centrifugo v6 that Plenum does not have: at their default they are accepted, otherwise refused with the
//! reason or the replacement. Sources: Centrifugo v6's configuration types and documentation.

use plenum_channels::duration;
use serde_json::{Map, Value};

use super::error::Problem;

/// How an option that Plenum does not have is taken.
enum Rule {
    /// Only its default is accepted (a JSON text).
    Default(&'static str),
    /// A section: accepted, whatever it holds, while its switch has this value or is absent.
    Off(&'static str, &'static str),
    /// As `Default` of an empty text, for values that must not be shown.
    Secret,
    /// Any value is accepted: what it tunes does not exist here. The operator is told.
    Void,
    /// Any value is accepted: it only matters to something else that is refused.
    Idle,
}

use Rule::{Default, Idle, Off, Secret, Void};

type Row = (&'static str, Rule, &'static str);

const PROXY: &str = "event proxies are not supported: give clients tokens (client.token, client.subscription_token)";
const UNIDIRECTIONAL: &str = "unidirectional transports are not supported: clients connect by WebSocket";
const EMULATION: &str = "clients connect by WebSocket; there is no fallback transport yet";
const BACKENDS: &str = "for several replicas set nats.servers; there is no other broker";
const MAP: &str = "map and shared poll subscriptions are not supported";
const DELTA: &str = "delta compression is not supported";
const NO_BUFFERS: &str = "connections hold no buffers of their own";

const ROWS: &[Row] = &[
    (
        "http_server.tls_autocert",
        Off("enabled", "false"),
        "give a certificate in http_server.tls; an ACME client can renew the files, which are read again",
    ),
    (
        "http_server.http3",
        Off("enabled", "false"),
        "HTTP/3 is not supported: clients connect by WebSocket over HTTP/1.1",
    ),
    ("http_server.h2c_external", Default("false"), "HTTP/2 is not supported"),
    ("log.file", Default("\"\""), "logs go to standard error: redirect that"),
    ("engine", Off("type", "\"memory\""), BACKENDS),
    ("broker", Off("enabled", "false"), BACKENDS),
    ("presence_manager", Off("enabled", "false"), BACKENDS),
    ("map_broker", Off("type", "\"memory\""), MAP),
    ("shared_poll", Idle, ""),
    ("client.proxy.connect", Off("enabled", "false"), PROXY),
    ("client.proxy.refresh", Off("enabled", "false"), PROXY),
    ("client.presence_update_interval", Void, "presence is leased to the replica and renewed every second"),
    (
        "client.concurrency",
        Void,
        "commands of one connection always run side by side; client.max_in_flight_commands bounds them",
    ),
    ("client.channel_position_check_delay", Void, "positions are checked as publications arrive"),
    ("client.channel_position_max_time_lag", Default("0"), "positions are checked as publications arrive"),
    (
        "client.insecure_skip_token_signature_verify",
        Default("false"),
        "signatures are always verified; client.insecure needs no tokens at all",
    ),
    (
        "client.subscribe_to_user_personal_channel.single_connection",
        Default("false"),
        "not supported; client.user_connection_limit = 1 refuses the second connection instead of ending the first",
    ),
    ("client.connect_code_to_unidirectional_disconnect", Off("enabled", "false"), UNIDIRECTIONAL),
    ("channel.proxy", Idle, ""),
    ("channel.publication_data_format", Default("\"\""), "payloads pass untouched; empty ones are refused"),
    ("rpc.proxy", Idle, ""),
    ("rpc.without_namespace.proxy_enabled", Default("false"), PROXY),
    ("rpc.without_namespace.proxy_name", Idle, ""),
    ("rpc.namespaces", Default("[]"), PROXY),
    ("rpc.namespace_boundary", Idle, ""),
    ("rpc.ping", Off("enabled", "false"), "clients send the protocol's ping command"),
    ("proxies", Default("[]"), PROXY),
    ("grpc_api", Off("enabled", "false"), "use the HTTP API (http_api)"),
    ("websocket.compression", Default("false"), "permessage-deflate is not supported yet"),
    ("websocket.compression_min_size", Idle, ""),
    ("websocket.compression_level", Idle, ""),
    ("websocket.decompressed_message_size_limit", Idle, ""),
    ("websocket.read_buffer_size", Void, NO_BUFFERS),
    ("websocket.write_buffer_size", Void, NO_BUFFERS),
    ("websocket.use_write_buffer_pool", Void, NO_BUFFERS),
    ("sse", Off("enabled", "false"), EMULATION),
    ("http_stream", Off("enabled", "false"), EMULATION),
    ("webtransport", Off("enabled", "false"), EMULATION),
    ("emulation", Idle, ""),
    ("uni_sse", Off("enabled", "false"), UNIDIRECTIONAL),
    ("uni_http_stream", Off("enabled", "false"), UNIDIRECTIONAL),
    ("uni_websocket", Off("enabled", "false"), UNIDIRECTIONAL),
    ("uni_grpc", Off("enabled", "false"), UNIDIRECTIONAL),
    ("admin", Off("enabled", "false"), "there is no admin interface: use the HTTP API and the metrics"),
    ("prometheus.instrument_http_handlers", Default("false"), "there are no metrics per HTTP handler"),
    ("prometheus.recovered_publications_histogram", Default("false"), "there is no such histogram"),
    ("prometheus.native_histograms", Default("false"), "histograms are classic ones"),
    ("swagger", Off("enabled", "false"), "the OpenAPI document is at /api/openapi.json, for any viewer"),
    ("debug", Off("enabled", "false"), "there are no profiling endpoints: use the system's profiler"),
    ("dev", Off("enabled", "false"), "start with --dev"),
    ("init", Off("enabled", "false"), "not supported: clients connect by WebSocket"),
    ("opentelemetry", Off("enabled", "false"), "tracing export is not supported yet"),
    ("graphite", Off("enabled", "false"), "scrape the Prometheus endpoint"),
    ("usage_stats", Idle, ""),
    ("node.info_metrics_aggregate_interval", Void, "metrics are counters: their reader computes rates"),
    ("pid_file", Default("\"\""), "a service manager knows the process id"),
    ("enable_unreleased_features", Default("false"), "there are none"),
];

const TLS: &[Row] = &[
    ("client_ca_pem", Default("\"\""), "client certificates are not supported"),
    ("server_ca_pem", Idle, ""),
    ("insecure_skip_verify", Idle, ""),
    ("server_name", Idle, ""),
    ("cert_pem_file", Default("\"\""), "use cert_pem"),
    ("key_pem_file", Default("\"\""), "use key_pem"),
    ("cert_pem_b64", Default("\"\""), "use cert_pem with the path of a file"),
    ("key_pem_b64", Default("\"\""), "use key_pem with the path of a file"),
];

const NAMESPACE: &[Row] = &[
    ("auto_cache_recovery", Default("false"), "not supported: clients ask for recovery"),
    ("allowed_delta_types", Default("[]"), DELTA),
    ("delta_publish", Default("false"), DELTA),
    ("allow_tags_filter", Default("false"), "tags filters are not supported yet"),
    ("publication_data_format", Default("\"\""), "payloads pass untouched; empty ones are refused"),
    ("subscribe_proxy_enabled", Default("false"), PROXY),
    ("subscribe_proxy_name", Idle, ""),
    ("publish_proxy_enabled", Default("false"), PROXY),
    ("publish_proxy_name", Idle, ""),
    ("sub_refresh_proxy_enabled", Default("false"), PROXY),
    ("sub_refresh_proxy_name", Idle, ""),
    ("subscribe_stream_proxy_enabled", Default("false"), PROXY),
    ("subscribe_stream_proxy_name", Idle, ""),
    ("subscribe_stream_proxy_bidirectional", Idle, ""),
    ("subscription_type", Default("\"stream\""), MAP),
    ("map", Idle, ""),
    ("shared_poll", Idle, ""),
    ("map_clients_presence_channel_prefix", Default("\"\""), MAP),
    ("map_users_presence_channel_prefix", Default("\"\""), MAP),
];

const OWN_CONNECTION: &str = "consumers use the connections of nats: set nats.servers, nats.user and so on";

/// Options of `consumers[].nats_jetstream`.
const CONSUMER: &[Row] = &[
    ("url", Default("\"nats://127.0.0.1:4222\""), OWN_CONNECTION),
    ("credentials_file", Default("\"\""), OWN_CONNECTION),
    ("username", Default("\"\""), OWN_CONNECTION),
    ("password", Secret, OWN_CONNECTION),
    ("token", Secret, OWN_CONNECTION),
    ("tls", Off("enabled", "false"), OWN_CONNECTION),
];

/// Top-level options of Centrifugo before v6, with where they are now.
const BEFORE_V6: &[(&str, &str)] = &[
    ("address", "http_server.address"),
    ("port", "http_server.port"),
    ("internal_port", "http_server.internal_port"),
    ("allowed_origins", "client.allowed_origins"),
    ("token_hmac_secret_key", "client.token.hmac_secret_key"),
    ("token_rsa_public_key", "client.token.rsa_public_key"),
    ("token_jwks_public_endpoint", "client.token.jwks_public_endpoint"),
    ("api_key", "http_api.key"),
    ("namespaces", "channel.namespaces"),
    ("log_level", "log.level"),
    ("allow_anonymous_connect_without_token", "client.allow_anonymous_connect_without_token"),
    ("client_insecure", "client.insecure"),
    ("presence", "channel.without_namespace.presence"),
    ("history_size", "channel.without_namespace.history_size"),
    ("history_ttl", "channel.without_namespace.history_ttl"),
    ("tls", "http_server.tls"),
];

/// Takes everything out of the tree that Plenum does not have, and reports what cannot be left out. The problems'
/// source is not filled in.
pub fn take(tree: &mut Map<String, Value>, warnings: &mut Vec<String>) -> Vec<Problem> {
    let mut found = Findings { problems: Vec::new(), warnings };
    for row in ROWS {
        apply(tree, "", row.0, row, &mut found);
    }
    for row in TLS {
        for section in ["http_server.tls", "http_server.internal_tls"] {
            apply(tree, "", &format!("{section}.{}", row.0), row, &mut found);
        }
    }
    for row in NAMESPACE {
        apply(tree, "", &format!("channel.without_namespace.{}", row.0), row, &mut found);
        let list = tree.get_mut("channel").and_then(|channel| channel.get_mut("namespaces"));
        for (index, one) in list.and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            if let Value::Object(options) = one {
                apply(options, &format!("channel.namespaces[{index}]."), row.0, row, &mut found);
            }
        }
    }
    let consumers = tree.get_mut("consumers").and_then(Value::as_array_mut);
    for (index, one) in consumers.into_iter().flatten().enumerate() {
        if let Some(Value::Object(options)) = one.get_mut("nats_jetstream") {
            for row in CONSUMER {
                apply(options, &format!("consumers[{index}].nats_jetstream."), row.0, row, &mut found);
            }
        }
    }
    for (old, new) in BEFORE_V6 {
        if tree.remove(*old).is_some() {
            found.problem((*old).into(), None, format!("an option of Centrifugo before v6: use {new}"));
        }
    }
    tidy(tree);
    found.problems
}

struct Findings<'a> {
    problems: Vec<Problem>,
    warnings: &'a mut Vec<String>,
}

impl Findings<'_> {
    fn problem(&mut self, key: String, value: Option<String>, text: String) {
        self.problems.push(Problem { source: String::new(), key, value, text });
    }
}

/// Follows `path` down from `tree` and takes what is there as the row says.
fn apply(tree: &mut Map<String, Value>, before: &str, path: &str, row: &Row, found: &mut Findings<'_>) {
    if let Some((first, rest)) = path.split_once('.') {
        if let Some(Value::Object(inner)) = tree.get_mut(first) {
            apply(inner, &format!("{before}{first}."), rest, row, found);
        }
        return;
    }
    let Some(value) = tree.remove(path) else { return };
    let key = format!("{before}{path}");
    let reason = row.2;
    match &row.1 {
        Idle => {}
        Void => found.warnings.push(format!("{key} has no effect: {reason}")),
        Default(default) => {
            if !same(&value, default) {
                found.problem(key, Some(short(&value)), not_supported(reason));
            }
        }
        Secret => {
            if !same(&value, "\"\"") {
                found.problem(key, None, not_supported(reason));
            }
        }
        Off(switch, off) => {
            let state = value.get(switch);
            if state.is_some_and(|state| !same(state, off)) {
                found.problem(format!("{key}.{switch}"), state.map(short), not_supported(reason));
            }
        }
    }
}

fn not_supported(reason: &str) -> String {
    format!("not supported: {reason}")
}

/// Whether a value is the one that a JSON text says; durations, and numbers and switches in quotes, count as equal.
fn same(value: &Value, text: &str) -> bool {
    let Ok(wanted) = serde_json::from_str::<Value>(text) else { return false };
    if *value == wanted || value.is_null() {
        return true;
    }
    match value {
        Value::String(given) if wanted.is_number() => {
            given == text || duration::parse(given) == duration::parse(text) && duration::parse(text).is_some()
        }
        Value::String(given) => given == text || given.is_empty() && text == "false" || given == "0" && text == "false",
        Value::Number(given) if text == "false" => given.as_u64() == Some(0),
        _ => false,
    }
}

/// Sections that hold nothing any more.
fn tidy(tree: &mut Map<String, Value>) {
    for section in ["rpc", "client.proxy"] {
        let (parent, name) = match section.split_once('.') {
            Some((parent, name)) => (tree.get_mut(parent).and_then(Value::as_object_mut), name),
            None => (Some(&mut *tree), section),
        };
        let Some(parent) = parent else { continue };
        if parent.get(name).is_some_and(is_empty) {
            parent.remove(name);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(|inner| inner.values().all(is_empty))
}

/// A value for an error message, bounded in length.
pub fn short(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain("…".chars()).collect() }
}
