//! Where settings come from: files, the environment, flags; each becomes a tree that the next one overrides.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{ConfigError, Problem};
use super::table::{self, Kind};

/// What environment variables start with.
pub const PREFIX: &str = "PLENUM_";

/// The variable behind `--config`.
const FILE: &str = "PLENUM_CONFIG";

/// One source, with the name that errors call it by.
#[derive(Debug)]
pub struct Layer {
    /// `config.toml`, `PLENUM_HTTP_SERVER__PORT`, `--port`.
    pub name: String,
    /// What it sets.
    pub tree: Map<String, Value>,
}

/// Reads a file by its extension.
pub fn file(path: &Path) -> Result<Layer, ConfigError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let parse = match extension {
        "toml" => toml,
        "json" => json,
        "yaml" | "yml" => yaml,
        _ => return Err(ConfigError::Format { file: path.to_owned() }),
    };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { file: path.to_owned(), source })?;
    let syntax = |(line, column, reason)| ConfigError::Syntax { file: path.to_owned(), line, column, reason };
    let name = path.display().to_string();
    match parse(&text).map_err(syntax)? {
        Value::Object(tree) => Ok(Layer { name, tree }),
        Value::Null => Ok(Layer { name, tree: Map::new() }),
        _ => Err(syntax((1, 1, "the file must hold sections, not a single value".into()))),
    }
}

type SyntaxError = (usize, usize, String);

fn json(text: &str) -> Result<Value, SyntaxError> {
    serde_json::from_str(text).map_err(|error| {
        // The message ends in " at line 1 column 2", which the caller says in its own way.
        let message = error.to_string();
        let reason = message.split(" at line ").next().unwrap_or_default().to_owned();
        (error.line(), error.column(), reason)
    })
}

fn toml(text: &str) -> Result<Value, SyntaxError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        (line, column, error.message().to_owned())
    })
}

fn yaml(text: &str) -> Result<Value, SyntaxError> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        let number = |value: u64| usize::try_from(value).unwrap_or(0);
        let message = error.to_string();
        let reason = match message.lines().next().unwrap_or_default() {
            // The name of the alias may be an unquoted secret.
            alias if alias.contains("anchor") => "an alias (*name) without an anchor; quote texts that start with *",
            first => first,
        };
        (number(line), number(column), reason.to_owned())
    })
}

/// Settings from environment variables, a layer each, in the order of their names; what is ignored comes as a warning.
pub fn environment(
    variables: &[(String, String)],
    warnings: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (name, text) in variables {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        if name == FILE || text.is_empty() {
            continue;
        }
        let key = path.to_lowercase().replace("__", ".");
        if !key.contains('.') && !table::is_section(&key) {
            // Kubernetes sets such variables for a service that is called plenum.
            warnings.push(format!("{name} is not a setting and is ignored: levels are joined by two underscores"));
            continue;
        }
        match assignment(name, &key, text) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    layers
}

/// One setting given as text, by a variable or a flag.
pub fn assignment(name: &str, key: &str, text: &str) -> Result<Layer, Problem> {
    let structured = match table::find(key) {
        Some(row) => row.kind == Kind::List,
        None => table::is_section(key),
    };
    let looks_structured =
        structured || text.starts_with('[') && table::find(key).is_some_and(|r| r.kind == Kind::Words);
    let value = if looks_structured {
        serde_json::from_str(text).map_err(|error| Problem {
            source: name.to_owned(),
            key: key.to_owned(),
            value: None,
            text: format!("must be JSON: {error}"),
        })?
    } else {
        Value::String(text.to_owned())
    };
    let mut tree = Map::new();
    insert(&mut tree, key, value);
    Ok(Layer { name: name.to_owned(), tree })
}

fn insert(tree: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            tree.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let entry = tree.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// Puts `over` on top of `base`: sections merge, everything else is replaced.
pub fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(inner)), Value::Object(more)) => merge(inner, more),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// The value at a path such as `channel.namespaces[0].name`.
pub fn lookup<'a>(tree: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut steps = path.split('.');
    let mut value = step(tree.get(name_of(steps.next()?))?, path.split('.').next()?)?;
    for part in steps {
        value = step(value.as_object()?.get(name_of(part))?, part)?;
    }
    Some(value)
}

fn name_of(part: &str) -> &str {
    part.split('[').next().unwrap_or(part)
}

/// Follows the `[0]` of a path's part.
fn step<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match part.split_once('[') {
        None => Some(value),
        Some((_, index)) => value.as_array()?.get(index.trim_end_matches(']').parse::<usize>().ok()?),
    }
}

/// The last layer that set a path, or the longest part of it that anybody set.
pub fn origin<'a>(layers: &'a [Layer], path: &str) -> &'a str {
    let mut path = path;
    loop {
        if let Some(layer) = layers.iter().rev().find(|layer| lookup(&layer.tree, path).is_some()) {
            return &layer.name;
        }
        match path.rsplit_once('.') {
            Some((parent, _)) => path = parent,
            None => return "",
        }
    }
}
