//! The built binary's load test against the built binary.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use common::{Folder, Server, output};

const SETTINGS: &str = r#"
[client]
allowed_origins = ["http://app.example"]
[client.token]
hmac_secret_key = "a-secret-of-the-tests"
[[channel.namespaces]]
name = "chat"
history_size = 100
history_ttl = "60s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
"#;

fn bench(server: &Server, config: &str, more: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let url = format!("ws://{}/connection/websocket", server.address);
    let mut arguments = vec!["bench", "session", "--config", config, "--url", &url, "--json"];
    for unless_said in [["--duration", "4s"], ["--rate", "20"], ["--patience", "60s"]] {
        if !more.contains(&unless_said[0]) {
            arguments.extend(unless_said);
        }
    }
    arguments.extend(more);
    let (status, stdout, stderr) = output(&arguments);
    (status, serde_json::from_str(&stdout).unwrap_or_default(), stderr)
}

#[test]
fn users_get_what_was_acknowledged_and_the_result_says_so() {
    let folder = Folder::new();
    let config = folder.write("plenum.toml", SETTINGS);
    let server = Server::start(&["--config", &config]);
    for encoding in ["json", "protobuf"] {
        let (status, report, stderr) =
            bench(&server, &config, &["--users", "9", "--sessions", "3", "--max-p99", "60s", "--encoding", encoding]);
        assert_eq!(status, Some(0), "{report} {stderr}");
        let count = |name: &str| report[name].as_u64().unwrap();
        assert_eq!((count("users_joined"), count("connections"), count("lost"), count("doubled")), (9, 9, 0, 0));
        assert!(count("acknowledged") > 100, "{report}");
        assert_eq!(count("received"), 3 * count("acknowledged"), "three users in each session: {report}");
    }
}

#[test]
fn a_missed_threshold_is_the_exit_status() {
    let folder = Folder::new();
    let config = folder.write("plenum.toml", SETTINGS);
    let server = Server::start(&["--config", &config]);
    let (status, report, stderr) = bench(&server, &config, &["--users", "2", "--max-p99", "0s"]);
    assert_eq!(status, Some(1), "{report}");
    assert!(stderr.contains("FAILED: p99 latency"), "{stderr}");
    // For users that never come it waits all its patience.
    let closed = ["--users", "2", "--channel", "closed:", "--patience", "3s", "--duration", "1s"];
    let (status, report, stderr) = bench(&server, &config, &closed);
    assert_eq!((status, report["users_joined"].as_u64()), (Some(1), Some(0)), "{stderr}");
    assert!(report["trouble"].as_str().unwrap().contains("unknown channel"), "{report}");
    let (status, _, stderr) = bench(&server, &config, &["--users", "0"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("--users 0 is not allowed: 1 to"), "{stderr}");
}

/// Users that were there long before the publishing began do not all begin with it: the first moment is like any other.
#[test]
fn publications_are_spread_over_the_interval_from_the_first_moment_on() {
    let folder = Folder::new();
    let config = folder.write("plenum.toml", SETTINGS);
    let server = Server::start(&["--config", &config]);
    // The last user comes one interval after the first.
    let spread = ["--users", "100", "--ramp", "50", "--rate", "0.5", "--duration", "1s", "--max-p99", "60s"];
    let (status, report, stderr) = bench(&server, &config, &spread);
    assert_eq!(status, Some(0), "{report} {stderr}");
    let per_second = report["sent"].as_f64().unwrap() / report["seconds"].as_f64().unwrap();
    // Fewer where the machine stands still.
    assert!(per_second < 70.0, "50 a second were asked for, and without spreading 88 come: {report}");
}
