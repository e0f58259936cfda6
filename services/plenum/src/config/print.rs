//! `config doc` and `config default`.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::consumers::Consumer;
use super::sections::Config;
use super::table::{self, Kind, Row};
use super::{source, tree};

/// Every key with its type, default and meaning.
pub fn documentation() -> String {
    let defaults = defaults();
    let mut text = String::from(
        "Configuration keys. Sources, a later one overrides an earlier one: defaults, the file (TOML, JSON or YAML),\n\
         environment variables (PLENUM_HTTP_SERVER__PORT for http_server.port; lists of tables as JSON), flags.\n\
         Durations are texts such as \"10s\", \"300ms\", \"1h30m\". Names and meaning are Centrifugo v6's; an asterisk marks\n\
         keys or defaults of our own.\n",
    );
    let mut section = "";
    for row in table::rows() {
        let first = row.key.split('.').next().unwrap_or_default();
        if first != section {
            section = first;
            let _ = write!(text, "\n[{section}]\n");
        }
        let mark = if row.ours { " *" } else { "" };
        let default = shown_default(row, &defaults).map_or(String::new(), |default| format!(", default {default}"));
        let _ = writeln!(text, "{}{mark}  ({}{default})\n    {}", row.key, row.kind.name(), row.about);
    }
    text
}

/// A TOML file with every key at its default, each explained.
pub fn default_file() -> String {
    let defaults = defaults();
    let mut text = String::from("# Every setting at its default. An asterisk marks what is not as in Centrifugo v6.\n");
    let mut header = String::new();
    for row in sorted() {
        let (section, name) = row.key.rsplit_once('.').unwrap_or(("", &row.key));
        if section.is_empty() {
            continue;
        }
        let in_list = section.contains("[]");
        if section != header {
            section.clone_into(&mut header);
            match section.strip_suffix("[]") {
                Some(list) => {
                    let _ = write!(text, "\n# An entry of {list}; as many of these as needed.\n# [[{list}]]\n");
                }
                None if in_list => {
                    let _ = writeln!(text, "# [{}]", section.replace("[]", ""));
                }
                None => {
                    let _ = write!(text, "\n[{section}]\n");
                }
            }
        }
        if row.kind == Kind::List {
            continue;
        }
        let mark = if row.ours { "* " } else { "" };
        let default = shown_default(row, &defaults).unwrap_or_else(|| "\"\"".into());
        if in_list {
            let _ = writeln!(text, "# {name} = {default}");
        } else {
            let _ = writeln!(text, "# {mark}{}\n{name} = {default}", row.about);
        }
    }
    text
}

/// Every default, also of the options of a consumer.
fn defaults() -> Map<String, Value> {
    tree(&Config { consumers: vec![Consumer::default()], ..Config::default() })
}

/// Rows in the table's order, but those of one section together, and sections before their subsections, as TOML needs.
fn sorted() -> Vec<&'static Row> {
    let sections: Vec<&str> = table::rows().iter().map(section_of).collect();
    let order = |row: &Row| sections.iter().position(|section| *section == section_of(row)).unwrap_or(0);
    let mut rows: Vec<&'static Row> = table::rows().iter().collect();
    rows.sort_by_key(|row| {
        let top = row.key.split('.').next().unwrap_or_default();
        let first = sections.iter().position(|section| section.split('.').next() == Some(top)).unwrap_or(0);
        (first, section_of(row).matches('.').count(), order(row))
    });
    rows
}

fn section_of(row: &Row) -> &str {
    row.key.rsplit_once('.').map_or("", |(section, _)| section)
}

/// The default as TOML and JSON both write it; none for lists of tables.
fn shown_default(row: &Row, defaults: &Map<String, Value>) -> Option<String> {
    // The options of namespaces have the defaults of those without one, retention groups those of the default group.
    let key = row.key.replace("namespaces[]", "without_namespace").replace("nats.retention_groups[]", "nats");
    let key = key.replace("consumers[]", "consumers[0]");
    match source::lookup(defaults, &key) {
        Some(Value::Array(_)) if row.kind == Kind::List => None,
        Some(value) => Some(value.to_string()),
        None => None,
    }
}
