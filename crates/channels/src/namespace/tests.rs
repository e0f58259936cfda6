use super::*;
use crate::Settings;

fn settings(json: &str) -> Settings {
    serde_json::from_str(json).unwrap()
}

fn compiled(json: &str) -> Compiled {
    settings(json).compile().unwrap()
}

const ROOMS: &str = r##"{"channel": {
    "without_namespace": {"allow_user_limited_channels": true},
    "namespaces": [
        {"name": "chat", "presence": true},
        {"name": "private.v2", "allow_user_limited_channels": true},
        {"name": "digits", "channel_regex": "^[0-9]+$"},
        {"name": "words", "channel_regex": "^\\w+$"}
    ]}}"##;

#[test]
fn names_find_their_namespace() {
    let compiled = compiled(ROOMS);
    // Channel, namespace or error code, whether the name alone lets user 42 in.
    let cases: &[(&str, Result<&str, u32>, bool)] = &[
        ("news", Ok(""), true),
        ("chat:index", Ok("chat"), true),
        ("chat:a:b", Ok("chat"), true),
        ("chat:", Ok("chat"), true),
        (":index", Ok(""), true),
        ("chat", Ok(""), true),
        ("$chat:index", Ok("chat"), false),
        ("$news", Ok(""), false),
        ("$chat:a#42", Ok("chat"), false),
        ("chat:a#7", Ok("chat"), true),
        ("dialog#42", Ok(""), true),
        ("dialog#7,42", Ok(""), true),
        ("dialog#7,421", Ok(""), false),
        ("dialog#42#7", Ok(""), false),
        ("dialog#", Ok(""), false),
        ("private.v2:x#42", Ok("private.v2"), true),
        ("private.v2:x#7", Ok("private.v2"), false),
        ("private.v2:x", Ok("private.v2"), true),
        ("digits:123", Ok("digits"), true),
        ("digits:12a", Err(107), false),
        ("$digits:12", Ok("digits"), false),
        ("words:größe", Ok("words"), true),
        ("chat:größe", Err(107), false),
        ("größe", Err(107), false),
        ("nowhere:x", Err(102), false),
        ("$nowhere:x", Err(102), false),
        ("Chat:x", Err(102), false),
        ("", Err(107), false),
    ];
    for (channel, namespace, allowed) in cases {
        let resolved = compiled.resolve(channel);
        let name = resolved.as_ref().map(|resolved| resolved.namespace.name()).map_err(|error| error.code().code);
        assert_eq!(name, *namespace, "{channel}");
        assert_eq!(resolved.is_ok_and(|resolved| resolved.allows_user("42")), *allowed, "{channel}");
    }
    assert!(!compiled.resolve("dialog#,42").unwrap().allows_user(""), "nobody is listed as the anonymous user");
    let longest = "x".repeat(255);
    assert!(compiled.resolve(&longest).is_ok());
    assert_eq!(compiled.resolve(&(longest + "x")).unwrap_err(), ResolveError::TooLong { len: 256, max: 255 });
}

#[test]
fn empty_separators_switch_their_feature_off() {
    let compiled = compiled(
        r#"{"channel": {"private_prefix": "", "namespace_boundary": "", "user_boundary": "",
            "without_namespace": {"allow_user_limited_channels": true}}}"#,
    );
    for channel in ["$x", "chat:x", "x#7"] {
        let resolved = compiled.resolve(channel).unwrap();
        assert_eq!((resolved.namespace.name(), &resolved.kind), ("", &ChannelKind::Public), "{channel}");
    }
}

#[test]
fn one_user_without_a_separator() {
    let compiled =
        compiled(r#"{"channel": {"user_separator": "", "without_namespace": {"allow_user_limited_channels": true}}}"#);
    assert!(compiled.resolve("x#a,b").unwrap().allows_user("a,b"));
    assert!(!compiled.resolve("x#a,b").unwrap().allows_user("a"));
}

#[test]
fn retention_takes_the_channel_wide_meta_ttl() {
    let compiled = compiled(
        r#"{"channel": {"history_meta_ttl": "48h", "namespaces": [
            {"name": "own", "history_size": 5, "history_ttl": "60s", "history_meta_ttl": "2m"},
            {"name": "wide", "history_size": 5, "history_ttl": "1h"}]}}"#,
    );
    let own = compiled.resolve("own:x").unwrap().namespace.retention();
    assert_eq!(own, Retention { size: 5, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(120) });
    let wide = compiled.resolve("wide:x").unwrap().namespace.retention();
    assert_eq!(wide.meta_ttl, Duration::from_secs(48 * 3600));
    assert!(!compiled.resolve("x").unwrap().namespace.keeps_history());
}

#[test]
fn bad_settings_name_key_value_and_what_is_allowed() {
    // Settings, then what the error must say.
    let cases: &[(&str, &[&str])] = &[
        (r#"{"client": {"ping_interval": "0s"}}"#, &["client.ping_interval", "0s", "from 1s to 1h"]),
        (r#"{"client": {"pong_timeout": "25s"}}"#, &["client.pong_timeout", "25s", "client.ping_interval"]),
        (r#"{"client": {"missed_pongs": 0}}"#, &["client.missed_pongs", "0", "from 1"]),
        (r#"{"client": {"queue_max_size": 10}}"#, &["client.queue_max_size", "10", "65536"]),
        (r#"{"client": {"user_id_http_header": "a b"}}"#, &["client.user_id_http_header", "a b", "HTTP header"]),
        (r#"{"channel": {"max_length": 256}}"#, &["channel.max_length", "256", "from 1 to 255"]),
        (r#"{"channel": {"max_publication_size": 9999999}}"#, &["max_publication_size", "9999999", "983040"]),
        (r#"{"channel": {"history_meta_ttl": "1500ms"}}"#, &["channel.history_meta_ttl", "1500ms", "whole seconds"]),
        (
            r#"{"channel": {"without_namespace": {"name": "x"}}}"#,
            &["channel.without_namespace.name", "x", "channel.namespaces"],
        ),
        (
            r#"{"channel": {"namespaces": [{"name": "a"}]}}"#,
            &["channel.namespaces[0].name", "\"a\"", "^[-a-zA-Z0-9_.]{2,}$"],
        ),
        (
            r#"{"channel": {"namespaces": [{"name": "ab"}, {"name": "cd"}, {"name": "ab"}]}}"#,
            &["channel.namespaces[2].name", "\"ab\"", "channel.namespaces[0]"],
        ),
        (
            r#"{"channel": {"without_namespace": {"history_size": 5}}}"#,
            &["channel.without_namespace.history_size = 5", "history_ttl = 0s", "needs both"],
        ),
        (
            r#"{"channel": {"without_namespace": {"history_ttl": "5s"}}}"#,
            &["channel.without_namespace.history_ttl = 5s", "history_size = 0", "needs both"],
        ),
        (
            r#"{"channel": {"without_namespace": {"history_size": 1, "history_ttl": "721h"}}}"#,
            &["channel.without_namespace.history_ttl = 721h", "720h"],
        ),
        (
            r#"{"channel": {"without_namespace": {"force_recovery": true}}}"#,
            &["channel.without_namespace.force_recovery = true", "history_size"],
        ),
        (
            r#"{"channel": {"without_namespace": {"durability": "none", "history_size": 1, "history_ttl": "5s"}}}"#,
            &["channel.without_namespace.durability", "none", "history_size"],
        ),
        (
            r#"{"channel": {"namespaces": [{"name": "ab", "channel_regex": "["}]}}"#,
            &["channel.namespaces[0].channel_regex", "\"[\"", "regular expression"],
        ),
        (
            r#"{"client": {"subscribe_to_user_personal_channel":
                {"enabled": true, "personal_channel_namespace": "me"}}}"#,
            &["personal_channel_namespace", "\"me\"", "channel.namespaces"],
        ),
    ];
    for (json, parts) in cases {
        let error = settings(json).compile().unwrap_err().to_string();
        for part in *parts {
            assert!(error.contains(part), "{json}\n  gave: {error}\n  without: {part}");
        }
    }
}

#[test]
fn what_does_nothing_is_a_warning() {
    assert_eq!(compiled("{}").warnings, Vec::<String>::new());
    let warnings = compiled(
        r#"{"channel": {"namespaces": [{"name": "ab", "force_push_join_leave": true, "allow_recovery": true}]}}"#,
    )
    .warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|text| text.starts_with("channel.namespaces[0]: ")), "{warnings:?}");
}

#[test]
fn a_session_has_50_subscribers_unless_told_otherwise() {
    let settings = compiled(
        r#"{"channel": {"namespaces": [{"name": "poker", "session": true}, {"name": "hall", "session": true,
            "subscriber_limit": 200}, {"name": "news"}]}}"#,
    );
    let limit = |channel| settings.resolve(channel).unwrap().namespace.subscriber_limit;
    assert_eq!([limit("poker:a"), limit("hall:a"), limit("news:a"), limit("a")], [50, 200, 0, 0]);
}

#[test]
fn personal_channels() {
    assert_eq!(compiled("{}").personal_channel("42"), None);
    let on = r#"{"client": {"subscribe_to_user_personal_channel": {"enabled": true}}}"#;
    assert_eq!(compiled(on).personal_channel("42").as_deref(), Some("#42"));
    assert_eq!(compiled(on).personal_channel(""), None);
    let named = r#"{"channel": {"namespaces": [{"name": "me"}]}, "client": {"subscribe_to_user_personal_channel":
        {"enabled": true, "personal_channel_namespace": "me"}}}"#;
    assert_eq!(compiled(named).personal_channel("42").as_deref(), Some("me:#42"));
}
