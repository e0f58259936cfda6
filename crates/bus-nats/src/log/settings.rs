//! The settings of streams, and what must not differ from them.

use std::time::Duration;

use serde_json::{Value, json};

use super::config::{GroupConfig, LogConfig};
use super::names::ShardNames;
use super::setup::{SetupError, StreamInfo};

/// How long the server remembers ids of appends.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

fn duplicate_window(_config: &LogConfig) -> Duration {
    #[cfg(test)]
    if let Some(window) = *_config.faults.duplicate_window.lock() {
        return window;
    }
    DUPLICATE_WINDOW
}

/// The settings of a shard's stream.
pub(super) fn stream_config(
    stream: &str,
    names: &ShardNames,
    config: &LogConfig,
    group: &GroupConfig,
    first_seq: u64,
) -> Value {
    json!({
        "name": stream,
        "subjects": [names.all()],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": config.replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_bytes": group.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(-1)),
        "max_age": u64::try_from(group.max_age.as_nanos()).unwrap_or(u64::MAX),
        "duplicate_window": duplicate_window(config).as_nanos() as u64,
        "deny_delete": true,
        "deny_purge": true,
        "allow_rollup_hdrs": false,
        "allow_direct": true,
        "republish": { "src": names.all(), "dest": names.republished() },
        "first_seq": first_seq,
    })
}

/// What the comparison of a stream with its settings came to.
pub(super) enum Verified {
    /// Nothing is to be done.
    AsWanted,
    /// It must be updated to this.
    Widen(Value),
}

/// Whether a running stream still keeps its promises; somebody may have changed it.
pub(super) fn check_running(
    stream: &str,
    names: &ShardNames,
    config: &LogConfig,
    group: usize,
    info: &StreamInfo,
) -> Result<(), SetupError> {
    #[cfg(test)]
    if super::faults::Faults::on(&config.faults.trust_settings) {
        return Ok(());
    }
    verify(stream, &stream_config(stream, names, config, &config.groups[group], 0), info).map(drop)
}

/// Compares what a stream is with what it must be. Only a longer retention is applied by ourselves.
pub(super) fn verify(stream: &str, wanted: &Value, info: &StreamInfo) -> Result<Verified, SetupError> {
    let refuse = |setting: &'static str, found: &Value, wanted: &Value| SetupError::Stream {
        stream: stream.into(),
        setting,
        found: found.to_string(),
        wanted: wanted.to_string(),
    };
    let exact = [
        "subjects",
        "retention",
        "storage",
        "discard",
        "max_msgs",
        "max_msgs_per_subject",
        "max_msg_size",
        "duplicate_window",
        "deny_delete",
        "deny_purge",
        "allow_direct",
    ];
    for setting in exact {
        if info.config[setting] != wanted[setting] {
            return Err(refuse(setting, &info.config[setting], &wanted[setting]));
        }
    }
    // What must not be on may be missing altogether.
    let off = [
        "allow_rollup_hdrs",
        "allow_msg_ttl",
        "sealed",
        "no_ack",
        "discard_new_per_subject",
        "mirror_direct",
        "allow_msg_counter",
        "allow_msg_schedules",
        "mirror",
        "sources",
        "subject_transform",
    ];
    for setting in off {
        let found = &info.config[setting];
        if !matches!(found, Value::Null | Value::Bool(false)) {
            return Err(refuse(setting, found, &Value::Bool(false)));
        }
    }
    for part in ["src", "dest"] {
        if info.config["republish"][part] != wanted["republish"][part] {
            return Err(refuse("republish", &info.config["republish"], &wanted["republish"]));
        }
    }
    if info.config["republish"]["headers_only"] == Value::Bool(true) {
        return Err(refuse("republish", &info.config["republish"], &wanted["republish"]));
    }
    if info.config["num_replicas"].as_u64() < wanted["num_replicas"].as_u64() {
        return Err(refuse("num_replicas", &info.config["num_replicas"], &wanted["num_replicas"]));
    }
    if info.state.num_deleted > 0 {
        return Err(refuse("state.num_deleted", &Value::from(info.state.num_deleted), &Value::from(0)));
    }
    if let Some(lost) = info.state.lost.as_ref().map(|lost| lost.msgs.as_ref().map_or(0, Vec::len)) {
        return Err(refuse("state.lost", &Value::from(format!("{lost} messages")), &Value::from("none")));
    }
    // Otherwise an acknowledgement comes before the message is in the file.
    let persist = &info.config["persist_mode"];
    if !persist.is_null() && persist != "default" && persist != "" {
        return Err(refuse("persist_mode", persist, &Value::from("default")));
    }
    let mut update = info.config.clone();
    let mut widen = false;
    for setting in ["max_age", "max_bytes"] {
        // Below 1 means without limit.
        let limit = |value: &Value| value.as_i64().filter(|limit| *limit > 0).unwrap_or(i64::MAX);
        let (found, want) = (limit(&info.config[setting]), limit(&wanted[setting]));
        if want < found {
            return Err(refuse(setting, &info.config[setting], &wanted[setting]));
        }
        if want > found {
            update[setting] = wanted[setting].clone();
            widen = true;
        }
    }
    Ok(if widen { Verified::Widen(update) } else { Verified::AsWanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What no server does on request.
    #[test]
    fn what_was_lost_or_may_be_is_refused() {
        let config = LogConfig::default();
        let wanted = stream_config("s", &ShardNames::new("p", "default", 0), &config, &config.groups[0], 1);
        let verified = |change: fn(&mut Value)| {
            let mut info = json!({ "config": wanted, "state": {}, "created": "2026-01-01T00:00:00Z" });
            change(&mut info);
            match verify("s", &wanted, &serde_json::from_value(info).unwrap()) {
                Ok(_) => "",
                Err(SetupError::Stream { setting, .. }) => setting,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(verified(|_| ()), "");
        assert_eq!(verified(|info| info["config"]["persist_mode"] = "default".into()), "");
        assert_eq!(verified(|info| info["config"]["persist_mode"] = "async".into()), "persist_mode");
        assert_eq!(verified(|info| info["state"]["lost"] = json!({ "msgs": [5], "bytes": 9 })), "state.lost");
        assert_eq!(verified(|info| info["state"]["lost"] = json!({ "msgs": null, "bytes": 9 })), "state.lost");
        assert_eq!(verified(|info| info["state"]["num_deleted"] = 1.into()), "state.num_deleted");
    }
}
