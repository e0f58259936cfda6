//! The configuration: read from a file, the environment and flags, checked as a whole before anything is bound.

mod check;
mod consumers;
mod error;
mod nats;
mod print;
mod redis;
mod secret;
mod sections;
mod source;
mod table;
mod unsupported;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use check::{exposed, resolve};
pub use consumers::Consumer;
pub use error::{ConfigError, Problem};
pub use nats::{DEFAULT_GROUP, Nats, NatsPool, RetentionGroups};
pub use print::{default_file, documentation};
pub use redis::{Redis, RedisMode, RedisTls};
pub use sections::{Config, ErrorMode, Format, HttpServer, TlsSection};
use source::Layer;
use table::Kind;

/// Where settings come from; a later one overrides an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Overrides defaults: what `--dev` sets.
    pub preset: Map<String, Value>,
    /// `--config`
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Flag, key, value.
    pub flags: Vec<(String, String, String)>,
}

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What works but surely is not what was meant.
    pub warnings: Vec<String>,
}

/// Reads and checks everything. All settings that cannot be used are reported at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut warnings = Vec::new();
    let mut problems = Vec::new();
    let layers = layers(sources, &mut warnings, &mut problems)?;
    let mut tree = Map::new();
    for layer in &layers {
        source::merge(&mut tree, layer.tree.clone());
    }
    consumers::take_others(&mut tree, &mut problems);
    problems.extend(unsupported::take(&mut tree, &mut warnings));
    for (key, value) in &mut tree {
        walk(key, value, &mut problems);
    }
    let mut config = Config::default();
    read(tree, &mut config, &mut problems);
    // What could not be read is at its default now: checks between sections would only add confusion.
    if problems.is_empty() {
        check::check(&config, &mut warnings, &mut problems);
    }
    if problems.is_empty() {
        return Ok(Loaded { config, warnings });
    }
    for problem in &mut problems {
        if problem.source.is_empty() {
            problem.source = source::origin(&layers, &problem.key).to_owned();
        }
    }
    Err(ConfigError::Problems { problems })
}

fn layers(
    sources: &Sources,
    warnings: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = vec![Layer { name: "--dev".into(), tree: sources.preset.clone() }];
    if let Some(path) = &sources.file {
        layers.push(source::file(Path::new(path))?);
    }
    layers.extend(source::environment(&sources.environment, warnings, problems));
    for (flag, key, text) in &sources.flags {
        match source::assignment(flag, key, text) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(layers)
}

/// Finds keys that do not exist, and turns values written as text into what the key holds.
fn walk(path: &str, value: &mut Value, problems: &mut Vec<Problem>) {
    let problem = |key: &str, value: Option<String>, text: String| Problem {
        source: String::new(),
        key: key.to_owned(),
        value,
        text,
    };
    if table::is_section(path) {
        match value {
            Value::Object(inner) => {
                for (name, value) in inner {
                    walk(&format!("{path}.{name}"), value, problems);
                }
            }
            Value::Null => *value = Value::Object(Map::new()),
            other => {
                let text = format!("must be a section with {}", table::children(path).join(", "));
                problems.push(problem(path, shown(path, other), text));
            }
        }
        return;
    }
    match table::find(path) {
        Some(row) if row.kind == Kind::List => {
            for (index, element) in value.as_array_mut().into_iter().flatten().enumerate() {
                walk(&format!("{path}[{index}]"), element, problems);
            }
        }
        Some(row) => convert(row.kind, value),
        None => problems.push(problem(path, shown(path, value), unknown(path))),
    }
}

/// Files of Centrifugo may hold numbers and switches in quotes, and a port without; the environment holds only text.
fn convert(kind: Kind, value: &mut Value) {
    let text = match value {
        Value::String(text) => text.trim(),
        Value::Number(number) if matches!(kind, Kind::Text | Kind::Secret) => {
            *value = Value::String(number.to_string());
            return;
        }
        _ => return,
    };
    let converted = match kind {
        Kind::Switch => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Some(Value::Bool(true)),
            "false" | "f" | "0" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Number => text.parse::<i64>().ok().map(Value::from),
        Kind::Words => {
            let words = text.split([' ', ',']).filter(|word| !word.is_empty());
            Some(words.map(Value::from).collect())
        }
        _ => None,
    };
    if let Some(converted) = converted {
        *value = converted;
    }
}

fn unknown(path: &str) -> String {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let names = table::children(section);
    let near = names.iter().map(|other| (distance(name, other), *other)).min().filter(|(far, _)| *far <= 3);
    let below = if section.is_empty() { "at the top".to_owned() } else { format!("in {section}") };
    match near {
        Some((_, near)) => format!("there is no such key {below}; did you mean {near}?"),
        None => format!("there is no such key {below}; there are {}", names.join(", ")),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A value for an error message; nothing where the key could be a secret's.
fn shown(path: &str, value: &Value) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    let section = path.rsplit_once('.').map_or("", |(section, _)| section);
    // A name that does not exist may be a misspelt secret's.
    let misspelt = || {
        let secret = |name| table::find(&format!("{section}.{name}")).is_some_and(|row| row.kind == Kind::Secret);
        table::find(path).is_none() && table::children(section).into_iter().any(secret)
    };
    let secret = table::find(path).is_some_and(|row| row.kind == Kind::Secret)
        || misspelt()
        || ["secret", "key", "password", "token", "pem"].iter().any(|part| name.contains(part))
        || value.is_object();
    if secret { None } else { Some(unsupported::short(value)) }
}

/// Reads the sections; what cannot be read is a problem and stays as it was.
fn read(mut tree: Map<String, Value>, config: &mut Config, problems: &mut Vec<Problem>) {
    let mut section = |key: &str| tree.remove(key).unwrap_or_else(|| Value::Object(Map::new()));
    let mut client = section("client");
    let access = split(&mut client, &["allowed_origins", "token", "insecure_public"]);
    let mut subscription = split(&mut client, &["subscription_token"]);
    let mut token = subscription.get_mut("subscription_token").map_or_else(Value::default, Value::take);
    let enabled = split(&mut token, &["enabled"]);

    set(&mut config.http_server, section("http_server"), "http_server", problems);
    set(&mut config.log, section("log"), "log", problems);
    set(&mut config.client, client, "client", problems);
    set(&mut config.access, access, "client", problems);
    set(&mut config.subscription_token.token, token, "client.subscription_token", problems);
    if let Some(enabled) = enabled.get("enabled") {
        set(&mut config.subscription_token.enabled, enabled.clone(), "client.subscription_token.enabled", problems);
    }
    let mut channel = section("channel");
    config.retention_groups = RetentionGroups::take(&mut channel, problems);
    set(&mut config.channel, channel, "channel", problems);
    set(&mut config.nats, section("nats"), "nats", problems);
    set(&mut config.redis, section("redis"), "redis", problems);
    if let Some(consumers) = tree.remove("consumers") {
        set(&mut config.consumers, consumers, "consumers", problems);
    }
    let mut section = |key: &str| tree.remove(key).unwrap_or_else(|| Value::Object(Map::new()));
    set(&mut config.http_api, section("http_api"), "http_api", problems);
    set(&mut config.websocket, section("websocket"), "websocket", problems);
    set(&mut config.prometheus, section("prometheus"), "prometheus", problems);
    set(&mut config.health, section("health"), "health", problems);
    set(&mut config.node, section("node"), "node", problems);
    set(&mut config.shutdown, section("shutdown"), "shutdown", problems);
}

/// Moves some keys of an object into one of their own.
fn split(value: &mut Value, keys: &[&str]) -> Value {
    let mut taken = Map::new();
    if let Value::Object(map) = value {
        for key in keys {
            if let Some((key, value)) = map.remove_entry(*key) {
                taken.insert(key, value);
            }
        }
    }
    Value::Object(taken)
}

fn set<T: DeserializeOwned>(target: &mut T, value: Value, at: &str, problems: &mut Vec<Problem>) {
    if value.is_null() {
        return;
    }
    match serde_path_to_error::deserialize(&value) {
        Ok(read) => *target = read,
        Err(error) => {
            let path = error.path().to_string();
            let key = if path == "." { at.to_owned() } else { format!("{at}.{path}") };
            // Unknown keys were found before, with a better message.
            if problems.iter().any(|known| known.key.starts_with(&key)) {
                return;
            }
            let below = Map::from_iter([(String::from("at"), value)]);
            let at = if path == "." { "at".to_owned() } else { format!("at.{path}") };
            let value = source::lookup(&below, &at).and_then(|value| shown(&key, value));
            let secret = table::find(&key).is_some_and(|row| row.kind == Kind::Secret);
            let text = if secret { "must be a string".to_owned() } else { error.into_inner().to_string() };
            let about = table::find(&key).map_or(String::new(), |row| format!(" ({}: {})", row.kind.name(), row.about));
            problems.push(Problem { source: String::new(), key, value, text: text + &about });
        }
    }
}

/// The configuration as one tree, with every key; secrets are left out.
fn tree(config: &Config) -> Map<String, Value> {
    let mut client = object(&config.client);
    client.append(&mut object(&config.access));
    let mut subscription = object(&config.subscription_token.token);
    subscription.insert("enabled".into(), config.subscription_token.enabled.into());
    for token in [client.get_mut("token").and_then(Value::as_object_mut), Some(&mut subscription)] {
        for key in token.into_iter().flat_map(|token| token.iter_mut()).filter(|(key, _)| key.contains("secret")) {
            if key.1.as_str().is_some_and(|text| !text.is_empty()) {
                *key.1 = "[set]".into();
            }
        }
    }
    client.insert("subscription_token".into(), subscription.into());
    let mut channel = object(&config.channel);
    config.retention_groups.put(&mut channel);
    Map::from_iter([
        ("http_server".to_owned(), object(&config.http_server).into()),
        ("log".to_owned(), object(&config.log).into()),
        ("client".to_owned(), client.into()),
        ("channel".to_owned(), channel.into()),
        ("nats".to_owned(), object(&config.nats).into()),
        ("redis".to_owned(), object(&config.redis).into()),
        ("consumers".to_owned(), serde_json::to_value(&config.consumers).unwrap_or_default()),
        ("http_api".to_owned(), object(&config.http_api).into()),
        ("websocket".to_owned(), object(&config.websocket).into()),
        ("prometheus".to_owned(), object(&config.prometheus).into()),
        ("health".to_owned(), object(&config.health).into()),
        ("node".to_owned(), object(&config.node).into()),
        ("shutdown".to_owned(), object(&config.shutdown).into()),
    ])
}

/// Keys whose values differ; secrets are not compared.
pub fn changed(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (tree(old), tree(new));
    let keys = table::rows().iter().filter(|row| !row.key.contains("[]")).map(|row| row.key.as_str());
    keys.filter(|key| source::lookup(&old, key) != source::lookup(&new, key)).map(str::to_owned).collect()
}

fn object(section: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(section) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests;
