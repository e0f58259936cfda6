use std::collections::BTreeSet;

use super::*;

/// A file for a test; its folder goes when it is dropped.
struct File {
    folder: PathBuf,
    path: PathBuf,
}

impl File {
    fn new(name: &str, text: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("plenum-config-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        Self { folder, path }
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&Sources { file: Some(self.path.clone()), ..Sources::default() })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn file(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    File::new(name, text).load()
}

fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Sources { environment, ..Sources::default() }
}

fn message(result: Result<Loaded, ConfigError>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn defaults_are_usable() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.config.http_server.port, 8000);
    assert!(loaded.warnings.iter().any(|warning| warning.contains("no client can connect")), "{:?}", loaded.warnings);
}

const TOML: &str = r#"
[http_server]
port = 8100
internal_port = "9100"
[client]
ping_interval = "12s"
allowed_origins = ["https://app.example"]
[client.token]
hmac_secret_key = "a secret of this test only"
[[channel.namespaces]]
name = "chat"
history_size = 10
history_ttl = "1m"
"#;

const YAML: &str = r#"
http_server:
  port: 8100
  internal_port: 9100
client:
  ping_interval: 12s
  allowed_origins:
    - https://app.example
  token:
    hmac_secret_key: "a secret of this test only"
channel:
  namespaces:
    - name: chat
      history_size: 10
      history_ttl: 1m
"#;

const JSON: &str = r#"{
  "http_server": {"port": "8100", "internal_port": "9100"},
  "client": {
    "ping_interval": "12s",
    "allowed_origins": ["https://app.example"],
    "token": {"hmac_secret_key": "a secret of this test only"}
  },
  "channel": {"namespaces": [{"name": "chat", "history_size": 10, "history_ttl": "60s"}]}
}"#;

#[test]
fn three_formats_say_the_same() {
    let toml = file("a.toml", TOML).unwrap().config;
    assert_eq!(toml.http_server.port, 8100);
    assert_eq!(toml.http_server.internal_port(), Ok(Some(9100)));
    assert_eq!(toml.client.ping_interval.as_secs(), 12);
    assert_eq!(toml.access.token.hmac_secret_key, "a secret of this test only");
    assert_eq!(toml.channel.namespaces[0].history_ttl.as_secs(), 60);
    assert_eq!(file("a.yaml", YAML).unwrap().config, toml);
    assert_eq!(file("a.yml", YAML).unwrap().config, toml);
    assert_eq!(file("a.json", JSON).unwrap().config, toml);
}

#[test]
fn later_sources_override_earlier_ones() {
    let file = File::new("a.toml", "[http_server]\nport = 1\naddress = \"127.0.0.1\"\ninternal_port = \"11\"\n");
    let mut sources = environment(&[("PLENUM_HTTP_SERVER__PORT", "2"), ("PLENUM_HTTP_SERVER__INTERNAL_PORT", "22")]);
    sources.file = Some(file.path.clone());
    sources.flags = vec![("--port".into(), "http_server.port".into(), "3".into())];
    sources.preset.insert("http_server".into(), serde_json::json!({"address": "::1", "header_timeout": "3s"}));
    let server = load(&sources).unwrap().config.http_server;
    assert_eq!((server.port, server.internal_port.as_str(), server.address.as_str()), (3, "22", "127.0.0.1"));
    assert_eq!(server.header_timeout.as_secs(), 3);
}

#[test]
fn the_environment_reaches_every_kind_of_key() {
    let sources = environment(&[
        ("PLENUM_CLIENT__TOKEN__HMAC_SECRET_KEY", "12345"),
        ("PLENUM_CLIENT__INSECURE", "false"),
        ("PLENUM_CLIENT__ALLOWED_ORIGINS", "https://a.example https://b.example"),
        ("PLENUM_CLIENT__CHANNEL_LIMIT", "7"),
        ("PLENUM_CLIENT__STALE_CLOSE_DELAY", "3s"),
        ("PLENUM_CLIENT__SUBSCRIPTION_TOKEN__ENABLED", "1"),
        ("PLENUM_CHANNEL__NAMESPACES", r#"[{"name": "chat", "presence": true}]"#),
        ("PLENUM_CHANNEL__WITHOUT_NAMESPACE__PRESENCE", "true"),
        ("PLENUM_HTTP_API", r#"{"key": "k", "external": true}"#),
        ("PLENUM_LOG__LEVEL", ""),
        ("PLENUM_SERVICE_HOST", "10.0.0.1"),
        ("PLENUM_CONFIG", "elsewhere.toml"),
        ("HOME", "/"),
    ]);
    let Loaded { config, warnings } = load(&sources).unwrap();
    assert_eq!(config.access.token.hmac_secret_key, "12345");
    assert_eq!(config.access.allowed_origins, ["https://a.example", "https://b.example"]);
    assert_eq!((config.client.channel_limit, config.client.stale_close_delay.as_secs()), (7, 3));
    assert!(config.subscription_token.enabled && config.http_api.external);
    assert!(config.channel.namespaces[0].presence && config.channel.without_namespace.presence);
    assert_eq!(config.log.level, "info");
    let ignored: Vec<_> = warnings.iter().filter(|warning| warning.contains("PLENUM_SERVICE_HOST")).collect();
    assert_eq!(ignored.len(), 1, "{warnings:?}");
    assert!(!warnings.iter().any(|warning| warning.contains("PLENUM_CONFIG")), "{warnings:?}");
}

#[test]
fn what_cannot_be_used_names_source_key_value_and_what_is_allowed() {
    // Text of a TOML file, then what the one error must say.
    let cases: &[(&str, &[&str])] = &[
        ("[client]\nping_intervall = \"5s\"", &["client.ping_intervall = \"5s\"", "did you mean ping_interval?"]),
        ("[cliente]\nx = 1", &["cliente", "no such key at the top", "did you mean client?"]),
        ("[websocket]\ncolour = 5", &["websocket.colour = 5", "there are disabled, handler_prefix"]),
        ("[[channel.namespaces]]\nnam = \"x\"", &["channel.namespaces[0].nam = \"x\"", "did you mean name?"]),
        ("client = 5", &["client = 5", "must be a section with allowed_origins"]),
        ("[http_server]\nport = \"eighty\"", &["http_server.port = \"eighty\"", "expected u16", "1 to 65535"]),
        ("[http_server]\nport = 70000", &["http_server.port = 70000", "u16"]),
        ("[http_server]\ninternal_port = \"x\"", &["http_server.internal_port = \"x\"", "a port from 0 to 65535"]),
        ("[http_server]\naddress = \"no such host\"", &["http_server.address = \"no such host\"", "IP address"]),
        ("[http_server.tls]\nenabled = true", &["http_server.tls.cert_pem", "path of a PEM file", "key_pem"]),
        ("[http_server]\nheader_timeout = \"0s\"", &["http_server.header_timeout = 0s", "from 1s to 5m"]),
        ("[client]\nping_interval = 25", &["client.ping_interval = 25", "a duration such as", "25"]),
        ("[client]\ninsecure = \"yes\"", &["client.insecure = \"yes\"", "expected a boolean"]),
        ("[client]\ninsecure = true", &["client.insecure = true", "http_server.address = \"\"", "insecure_public"]),
        ("[client]\nallowed_origins = [\"https://[ab].x\"]", &["client.allowed_origins", "https://[ab].x", "exact"]),
        ("[client]\nallowed_origins = [1]", &["client.allowed_origins[0]", "expected a string"]),
        ("[client.token]\nrsa_public_key = \"x\"", &["client.token.rsa_public_key", "expected"]),
        ("[client.token]\nissuer_regex = \"[\"", &["client.token.issuer_regex"]),
        (
            "[client.subscription_token]\nenabled = true\nuser_id_claim = \"a b\"",
            &["client.subscription_token.user_id_claim", "a b", "letters"],
        ),
        ("[channel]\nmax_length = 256", &["channel.max_length = 256", "from 1 to 255"]),
        (
            "[channel.without_namespace]\nhistory_size = 5",
            &["channel.without_namespace.history_size = 5", "history_ttl"],
        ),
        ("[channel.without_namespace]\nforce_recovery_mode = \"all\"", &["force_recovery_mode = \"all\"", "`cache`"]),
        ("[log]\nlevel = \"loud\"", &["log.level = \"loud\"", "must be none, error"]),
        ("[log]\nformat = \"xml\"", &["log.format = \"xml\"", "`json` or `pretty`"]),
        ("[websocket]\nhandler_prefix = \"ws\"", &["websocket.handler_prefix = \"ws\"", "starts with /"]),
        ("[health]\nhandler_prefix = \"/metrics\"", &["health.handler_prefix", "must differ from prometheus"]),
        ("[websocket]\nmessage_size_limit = 1", &["websocket.message_size_limit = 1", "from 1024 to"]),
        ("[shutdown]\ntimeout = \"2h\"", &["shutdown.timeout = 2h", "from 1s to 1h"]),
        ("[nats]\nservers = [\"http://a\"]", &["nats.servers[0] = \"http://a\"", "nats://host:port"]),
        ("[nats]\nuser = \"u\"\ntoken = \"t\"", &["nats.token", "contradicts nats.user"]),
        ("[redis]\nservers = [\"redis://a\"]", &["redis.servers[0] = \"redis://a\"", "host:port"]),
        ("[redis]\nservers = [\"u:secretword@a:1\"]", &["redis.servers[0]", "redis.user"]),
        ("[redis]\nservers = [\"a:1\"]", &["redis.servers", "needs nats.servers"]),
        ("[redis]\nkey_secret = \"secretword\"", &["redis.key_secret", "at least 32 characters"]),
        ("[redis]\nmode = \"sentinel\"", &["redis.mode", "cluster"]),
        ("[redis]\ncommand_timeout = \"3s\"", &["redis.command_timeout = 3s", "50ms to 900ms"]),
        ("[nats]\ncreds_file = \"/nonexistent/a\"", &["nats.creds_file = \"/nonexistent/a\"", "path of a file"]),
        ("[nats]\nprefix = \"a.b\"", &["nats.prefix = \"a.b\"", "1 to 32"]),
        ("[nats]\nreplicas = 2", &["nats.replicas = 2", "1, 3 or 5"]),
        ("[nats]\nmax_age = \"1m\"", &["nats.max_age = 1m", "at least 10m"]),
        ("[nats]\nappend_patience = \"45s\"", &["nats.append_patience = 45s", "below 45s"]),
        ("[nats.pool]\nmin_publishing = 3", &["nats.pool.min_publishing = 3", "from 1 to 2"]),
        ("[nats.tls]\ncert_pem = \"/\"", &["nats.tls.cert_pem", "needs nats.tls.key_pem"]),
        ("[[nats.retention_groups]]\nname = \"default\"", &["nats.retention_groups[0].name = \"default\"", "unique"]),
        (
            "[[channel.namespaces]]\nname = \"chat\"\nretention_group = \"long\"",
            &["channel.namespaces[0].retention_group = \"long\"", "there are default"],
        ),
    ];
    for (text, parts) in cases {
        let error = message(file("plenum.toml", text));
        for part in parts.iter().chain(&["plenum.toml: "]) {
            assert!(error.contains(part), "{text}\n  gave: {error}\n  without: {part}");
        }
    }
}

#[test]
fn every_problem_is_told_at_once_with_its_source() {
    let file = File::new("a.json", r#"{"client": {"x": 1}, "http_server": {"port": -1}, "sse": {"enabled": true}}"#);
    let mut sources = environment(&[("PLENUM_LOG__LEVEL", "loud"), ("PLENUM_CLIENT__CHANEL_LIMIT", "1")]);
    sources.file = Some(file.path.clone());
    sources.flags = vec![("--set".into(), "node.nome".into(), "x".into())];
    let error = load(&sources).expect_err("must be refused").to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "5 settings cannot be used:", "{error}");
    for (source, key) in [
        ("a.json: ", "client.x = 1"),
        ("a.json: ", "http_server.port = -1"),
        ("a.json: ", "sse.enabled = true: not supported"),
        ("PLENUM_CLIENT__CHANEL_LIMIT: ", "client.chanel_limit"),
        ("--set: ", "node.nome"),
    ] {
        assert!(lines.iter().any(|line| line.contains(source) && line.contains(key)), "{source}{key}\n{error}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    assert!(message(file("a.ini", "")).contains("must end in .toml, .json, .yaml or .yml"));
    let missing = Sources { file: Some("/nonexistent/plenum.toml".into()), ..Sources::default() };
    assert!(message(load(&missing)).contains("/nonexistent/plenum.toml"));
    assert!(message(file("a.json", "[]")).contains("must hold sections"));
    assert!(file("a.yaml", "").is_ok() && file("a.yaml", "# nothing\n").is_ok());
    for (name, text, place) in [
        ("a.toml", "[client]\nx = = 1", "a.toml:2:5: "),
        ("a.json", "{\n \"client\": }", "a.json:2:12: "),
        ("a.yaml", "client:\n  x: [", "a.yaml:"),
    ] {
        let error = message(file(name, text));
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn secrets_are_never_printed() {
    const SECRET: &str = "s3cr3t-s3cr3t-s3cr3t";
    // Good, misplaced, misspelt, mistyped, and in files that do not parse.
    let files = [
        ("a.toml", format!("[client.token]\nhmac_secret_key = \"{SECRET}\"\n[http_api]\nkey = \"{SECRET}\"\n")),
        ("a.toml", format!("[nats]\nuser = \"u\"\npassword = \"{SECRET}\"")),
        ("a.toml", format!("[redis]\npassword = \"{SECRET}\"\nkey_secret = \"{SECRET}{SECRET}\"")),
        ("a.toml", format!("[redis]\nkey_secret = \"{SECRET}\"")),
        ("a.toml", format!("[nats]\npassword = \"{SECRET}\"\ntoken = \"{SECRET}\"")),
        ("a.toml", format!("[nats]\nservers = [\"nats://u:{SECRET}@host\"]")),
        ("a.toml", format!("[nats]\ntoken = [\"{SECRET}\"]")),
        ("a.toml", format!("[nats]\nnkey_seed_file = \"{SECRET}\"")),
        ("a.toml", format!("[client.token]\nhmac_secret = \"{SECRET}\"")),
        ("a.toml", format!("[client.token]\nhmac_sekret = \"{SECRET}\"")),
        ("a.toml", format!("[http_api]\napi_kee = \"{SECRET}\"")),
        ("a.toml", format!("token_hmac_secret_key = \"{SECRET}\"")),
        ("a.toml", format!("[http_api]\nkey = [\"{SECRET}\"]")),
        ("a.toml", format!("[client.token]\nhmac_secret_key = {{ x = \"{SECRET}\" }}")),
        ("a.toml", format!("[client]\ntoken = \"{SECRET}\"")),
        ("a.toml", format!("[admin]\nenabled = true\npassword = \"{SECRET}\"")),
        ("a.toml", format!("[client.token]\nhmac_secret_key = \"{SECRET}\nx = 1")),
        ("a.json", format!("{{\"http_api\": {{\"key\": \"{SECRET}\" \"x\": 1}}}}")),
        ("a.yaml", format!("http_api:\n  key: \"{SECRET}\n  x: [1\n")),
        ("a.yaml", format!("http_api:\n  key: *{SECRET}\n")),
    ];
    for (name, text) in files {
        let shown = match file(name, &text) {
            Ok(Loaded { config, warnings }) => {
                let tree = serde_json::to_string(&tree(&config)).unwrap();
                format!("{config:?} {config:#?} {warnings:?} {tree} {}", config.http_api.key)
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET), "{text}\n{shown}");
    }
}

const NATS: &str = r#"
[nats]
servers = "nats://a:4222,b:4222"
user = "plenum"
password = "s3cr3t-s3cr3t-s3cr3t"
replicas = 3
[[nats.retention_groups]]
name = "long"
shards = 2
max_age = "720h"
[channel.without_namespace]
history_size = 5
history_ttl = "48h"
[[channel.namespaces]]
name = "chat"
history_size = 5
history_ttl = "48h"
retention_group = "long"
presence = true
"#;

#[test]
fn namespaces_choose_a_retention_group() {
    let Loaded { config, warnings } = file("a.toml", NATS).unwrap();
    assert_eq!(config.nats.servers, ["nats://a:4222", "b:4222"]);
    let chosen: Vec<_> =
        config.retention_groups.entries(&config.channel).map(|(_, name, group)| (name, group)).collect();
    assert_eq!(chosen, [("", "default"), ("chat", "long")]);
    let groups = config.nats.groups();
    assert_eq!((groups[0].name.as_str(), groups[0].shards, groups[1].shards), ("default", 4, 2));
    for expected in ["channel.without_namespace.history_ttl = 48h is longer", "presence is each replica's own"] {
        assert!(warnings.iter().any(|warning| warning.starts_with(expected)), "{expected}: {warnings:?}");
    }
    assert!(!warnings.iter().any(|warning| warning.contains("namespaces[0].history_ttl")), "{warnings:?}");
    let mut new = config.clone();
    new.retention_groups.namespaces.clear();
    assert_eq!(changed(&config, &new), ["channel.namespaces"]);
}

#[test]
fn nats_is_off_without_servers_and_can_be_set_from_the_environment() {
    assert!(!Config::default().nats.enabled());
    let sources = environment(&[("PLENUM_NATS__SERVERS", "nats://a nats://b"), ("PLENUM_NATS__TLS__ENABLED", "true")]);
    let nats = load(&sources).unwrap().config.nats;
    assert!(nats.enabled() && nats.tls.enabled && nats.servers.len() == 2);
}

/// What Centrifugo's documentation shows for a typical server; all of it exists here.
const TYPICAL: &str = r#"{
  "http_server": {"port": 8000, "internal_port": "9000", "tls": {"enabled": false}},
  "log": {"level": "info"},
  "client": {
    "allowed_origins": ["https://example.com"],
    "token": {"hmac_secret_key": "secret", "audience": "", "issuer": ""},
    "ping_interval": "25s", "pong_timeout": "8s",
    "history_max_publication_limit": 300, "recovery_max_publication_limit": 300,
    "concurrency": 8,
    "subscribe_to_user_personal_channel": {"enabled": true, "personal_channel_namespace": "personal"}
  },
  "channel": {
    "without_namespace": {"presence": true, "allow_subscribe_for_client": true},
    "namespaces": [
      {"name": "chat", "presence": true, "join_leave": true, "force_push_join_leave": true, "history_size": 100,
       "history_ttl": "300s", "force_recovery": true, "allowed_delta_types": [], "subscribe_proxy_name": "default",
       "subscription_type": "stream", "publication_data_format": ""},
      {"name": "personal"}
    ],
    "proxy": {"subscribe": {"endpoint": "http://localhost:3000/subscribe", "timeout": "1s"}}
  },
  "http_api": {"key": "api", "error_mode": ""},
  "engine": {"type": "memory", "redis": {"address": "redis://127.0.0.1:6379"}},
  "broker": {"enabled": false, "type": "nats"},
  "admin": {"enabled": false, "password": "x", "secret": "y"},
  "websocket": {"compression": false, "compression_level": 1, "read_buffer_size": 512, "write_timeout": "1s"},
  "sse": {"enabled": false}, "uni_grpc": {"enabled": false, "port": 11000},
  "consumers": [{"name": "pg", "enabled": false, "type": "postgresql"}],
  "rpc": {"ping": {"enabled": false, "method": "ping"}, "namespaces": [], "namespace_boundary": ":"},
  "usage_stats": {"disabled": true},
  "prometheus": {"enabled": true}, "health": {"enabled": true}, "swagger": {"enabled": false},
  "shutdown": {"timeout": "30s"}, "node": {"info_metrics_aggregate_interval": "60s"}
}"#;

#[test]
fn a_typical_centrifugo_file_starts() {
    let Loaded { config, warnings } = file("config.json", TYPICAL).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.client.pong_timeout.as_secs(), 8);
    assert_eq!(config.channel.namespaces.len(), 2);
    let told: Vec<&String> = warnings.iter().filter(|warning| warning.contains("has no effect")).collect();
    assert_eq!(told.len(), 3, "what tunes nothing here is told: {told:?}");
}

#[test]
fn a_centrifugo_file_with_more_lists_everything_in_one_error() {
    let text = r#"{
      "client": {"proxy": {"connect": {"enabled": true, "endpoint": "http://x"}}, "channel_position_max_time_lag": "5s",
        "subscribe_to_user_personal_channel": {"single_connection": true}},
      "channel": {
        "without_namespace": {"delta_publish": true},
        "namespaces": [{"name": "ok"}, {"name": "map", "subscription_type": "map", "map": {"mode": "ephemeral"},
          "allowed_delta_types": ["fossil"], "subscribe_proxy_enabled": true, "allow_tags_filter": true}]},
      "proxies": [{"name": "ppp"}],
      "consumers": [{"name": "off", "enabled": false, "type": "kafka", "kafka": {"brokers": ["x"]}}, {"name": "kafka", "enabled": true, "type": "kafka"}],
      "engine": {"type": "redis"}, "broker": {"enabled": true, "type": "nats"},
      "presence_manager": {"enabled": true}, "map_broker": {"type": "redis"},
      "websocket": {"compression": true}, "sse": {"enabled": true}, "http_stream": {"enabled": true},
      "uni_sse": {"enabled": true}, "grpc_api": {"enabled": true, "key": "s"}, "admin": {"enabled": "true"},
      "http_server": {"http3": {"enabled": true}, "tls_autocert": {"enabled": true}, "tls": {"client_ca_pem": "x"}},
      "opentelemetry": {"enabled": true}, "graphite": {"enabled": 1}, "debug": {"enabled": true},
      "swagger": {"enabled": true}, "rpc": {"namespaces": [{"name": "x"}], "ping": {"enabled": true}},
      "pid_file": "/x", "token_hmac_secret_key": "s", "log": {"file": "/x"}, "unified_proxy": {}
    }"#;
    let Err(ConfigError::Problems { problems }) = file("config.json", text) else { panic!("must be refused") };
    let keys: BTreeSet<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    let expected = BTreeSet::from([
        "client.proxy.connect.enabled",
        "client.channel_position_max_time_lag",
        "client.subscribe_to_user_personal_channel.single_connection",
        "channel.without_namespace.delta_publish",
        "channel.namespaces[1].subscription_type",
        "channel.namespaces[1].allowed_delta_types",
        "channel.namespaces[1].subscribe_proxy_enabled",
        "channel.namespaces[1].allow_tags_filter",
        "proxies",
        "consumers[1].type",
        "engine.type",
        "broker.enabled",
        "presence_manager.enabled",
        "map_broker.type",
        "websocket.compression",
        "sse.enabled",
        "http_stream.enabled",
        "uni_sse.enabled",
        "grpc_api.enabled",
        "admin.enabled",
        "http_server.http3.enabled",
        "http_server.tls_autocert.enabled",
        "http_server.tls.client_ca_pem",
        "opentelemetry.enabled",
        "graphite.enabled",
        "debug.enabled",
        "swagger.enabled",
        "rpc.namespaces",
        "rpc.ping.enabled",
        "pid_file",
        "token_hmac_secret_key",
        "log.file",
        "unified_proxy",
    ]);
    assert_eq!(keys, expected);
    for problem in &problems {
        assert!(problem.source.ends_with("config.json"), "{problem}");
        assert!(problem.text.len() > 10, "a reason or a replacement: {problem}");
    }
}

#[test]
fn the_table_and_the_structs_have_the_same_keys() {
    let mut config = Config::default();
    config.channel.namespaces = vec![plenum_channels::NamespaceOptions { name: "x".into(), ..Default::default() }];
    config.nats.retention_groups = vec![Default::default()];
    config.consumers = vec![Default::default()];
    let mut keys = BTreeSet::new();
    collect("", &Value::Object(tree(&config)), &mut keys);
    let rows: BTreeSet<String> = table::rows().iter().map(|row| row.key.clone()).collect();
    assert_eq!(rows.len(), table::rows().len(), "no row twice");
    assert_eq!(keys, rows);
    for row in table::rows() {
        assert!(row.about.ends_with('.') && row.about.len() > 10, "{} is not explained: {:?}", row.key, row.about);
    }
}

fn collect(path: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(&path, value, keys);
            }
        }
        Value::Array(list) => {
            keys.insert(path.to_owned());
            for element in list {
                collect(&format!("{path}[]"), element, keys);
            }
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

#[test]
fn the_default_file_holds_the_defaults() {
    let text = default_file();
    let loaded = file("plenum.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(loaded.config, Config::default());
    let written: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(written["http_server"]["port"].as_integer(), Some(8000));
    for row in table::rows() {
        let name = row.key.rsplit('.').next().unwrap();
        assert!(text.contains(name), "{name} is missing");
    }
}

#[test]
fn the_documentation_explains_every_key() {
    let text = documentation();
    for row in table::rows() {
        assert!(text.contains(&row.key) && text.contains(row.about), "{}", row.key);
    }
    assert!(text.contains("client.ping_interval  (duration, default \"25s\")"), "{text}");
    assert!(text.contains("client.missed_pongs *  (integer, default 2)"), "{text}");
}

#[test]
fn insecure_needs_loopback_or_a_second_word() {
    let cases = [
        ("[client]\ninsecure = true\n[http_server]\naddress = \"127.0.0.1\"", true),
        ("[client]\ninsecure = true\n[http_server]\naddress = \"::1\"", true),
        ("[client]\ninsecure = true\ninsecure_public = true", true),
        ("[client]\ninsecure = true\n[http_server]\naddress = \"0.0.0.0\"", false),
        ("[client]\ninsecure = true", false),
    ];
    for (text, usable) in cases {
        assert_eq!(file("a.toml", text).is_ok(), usable, "{text}");
    }
}

#[test]
fn one_port_named_twice_is_one_port() {
    let port = |text: &str| file("a.toml", text).unwrap().config.http_server.internal_port();
    assert_eq!(port("[http_server]\nport = 9000\ninternal_port = \"9000\""), Ok(None));
    assert_eq!(port("[http_server]\ninternal_port = 9000"), Ok(Some(9000)));
    let apart = "[http_server]\naddress = \"127.0.0.1\"\ninternal_address = \"127.0.0.2\"\ninternal_port = 8000";
    assert_eq!(port(apart), Ok(Some(8000)));
}

#[test]
fn limits_are_read_and_checked() {
    let loaded = file(
        "limits.toml",
        r#"
[http_server]
trusted_proxies = ["10.0.0.0/8", "::1"]
[client.rate_limit.user]
publish = "50/1s"
[client.rate_limit.address]
connect = "200/1m"
[client.on_unavailable]
publish_rate = "closed"
[channel.without_namespace]
subscriber_limit = 50
[[channel.namespaces]]
name = "poker"
session = true
"#,
    );
    let config = loaded.unwrap().config;
    let publish = config.client.rate_limit.user.publish.unwrap();
    assert_eq!((publish.tokens, publish.period.as_secs()), (50, 1));
    assert_eq!(config.client.rate_limit.address.connect.unwrap().period.as_secs(), 60);
    assert_eq!(config.client.rate_limit.user.connect, None);
    assert_eq!(config.client.on_unavailable.publish_rate, plenum_channels::Fallback::Closed);
    assert_eq!(config.channel.without_namespace.subscriber_limit, 50);
    let compiled = config.settings().compile().unwrap();
    assert_eq!(compiled.resolve("poker:a").unwrap().namespace.subscriber_limit, 50);
    for (text, parts) in [
        ("[client.rate_limit.user]\npublish = \"50\"", &["client.rate_limit.user.publish", "20/1s"][..]),
        ("[client.rate_limit.user]\npublish = 50", &["client.rate_limit.user.publish", "20/1s"]),
        ("[client.rate_limit.user]\nhistory = \"1/1s\"", &["history"]),
        ("[client.on_unavailable]\nsubscribers = \"ajar\"", &["client.on_unavailable.subscribers", "ajar"]),
        ("[http_server]\ntrusted_proxies = [\"nginx\"]", &["http_server.trusted_proxies[0]", "nginx", "network"]),
    ] {
        let message = message(file("limits.toml", text));
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}

#[test]
fn consumers_are_read_and_checked() {
    let good = r#"{"nats": {"servers": ["nats://a:4222"]}, "consumers": [
      {"name": "off", "type": "kafka", "kafka": {"brokers": ["x"]}},
      {"enabled": true, "name": "outbox", "type": "nats_jetstream", "nats_jetstream": {
        "url": "nats://127.0.0.1:4222", "password": "", "tls": {"enabled": false},
        "stream_name": "COMMANDS", "durable_consumer_name": "plenum", "subjects": ["commands.>"], "tries": "3"}}]}"#;
    let config = file("consumers.json", good).unwrap_or_else(|error| panic!("{error}")).config;
    let source = &config.consumers[1].nats_jetstream;
    assert!(!config.consumers[0].enabled && config.consumers[1].enabled);
    assert_eq!((source.tries, source.deliver_policy.as_str(), source.max_ack_pending), (3, "all", 1000));
    let toml = |servers: &str, options: &str| {
        format!(
            "[nats]\nservers = [{servers}]\n[[consumers]]\nenabled = true\nname = \"a\"\ntype = \"nats_jetstream\"\n\
             [consumers.nats_jetstream]\nstream_name = \"S\"\ndurable_consumer_name = \"d\"\n{options}"
        )
    };
    const SERVER: &str = "\"nats://a:4222\"";
    assert!(file("consumers.toml", &toml(SERVER, "")).is_ok());
    let twice = toml(SERVER, "") + toml("", "").split_once("servers = []\n").unwrap().1;
    for (text, parts) in [
        (toml("", ""), &["consumers[0].enabled = true", "nats.servers"][..]),
        (toml(SERVER, "tries = 0"), &["consumers[0].nats_jetstream.tries = 0", "from 1 to 100"]),
        (toml(SERVER, "max_ack_pending = 20000"), &["max_ack_pending = 20000", "10000"]),
        (toml(SERVER, "deliver_policy = \"last\""), &["deliver_policy = \"last\"", "all or new"]),
        (toml(SERVER, "subjects = [\"a..b\"]"), &["subjects[0] = \"a..b\"", "a subject"]),
        (toml(SERVER, "max_message_size = 1"), &["max_message_size = 1", "1024"]),
        (toml(SERVER, "retry_delay = \"2h\""), &["retry_delay = 2h", "1m"]),
        (toml(SERVER, "method_header = \"a b\""), &["method_header = \"a b\"", "name of a header"]),
        (toml(SERVER, "password = \"s3cret\""), &["nats_jetstream.password", "connections of nats"]),
        (toml(SERVER, "url = \"nats://b:4222\""), &["nats_jetstream.url", "connections of nats"]),
        (toml(SERVER, "stream = \"x\""), &["consumers[0].nats_jetstream.stream", "stream_name"]),
        (toml(SERVER, "").replace("\"S\"", "\"a.b\""), &["stream_name = \"a.b\"", "without"]),
        (
            toml(SERVER, "[consumers.nats_jetstream.publication_data_mode]\nenabled = true\nchannels_header = \"\""),
            &["publication_data_mode.channels_header", "must name a header"],
        ),
        (twice, &["consumers[1].name = \"a\"", "unique", "consumers[1].nats_jetstream.durable_consumer_name"]),
    ] {
        let message = message(file("consumers.toml", &text));
        assert!(!message.contains("s3cret"), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}
