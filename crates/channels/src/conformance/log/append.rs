//! Acknowledgement, order, idempotency, conditions.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::join_all;
use plenum_protocol::{ClientInfo, Publication};

use super::super::{Fixture, PATIENCE, Recorder};
use super::{KEEP, append, fill, read, request, texts};
use crate::{Append, AppendError, IdempotencyKey, Log, MAX_CHANNEL_BYTES, Since, Version};

fn key(scope: &str, key: &str) -> Option<IdempotencyKey> {
    Some(IdempotencyKey { scope: scope.into(), key: key.into() })
}

/// Offsets of a channel increase strictly, and all replicas name the same epoch.
pub async fn offsets_increase_in_one_epoch(fixture: &Fixture<dyn Log>) {
    let mut last = 0;
    let mut epochs = HashSet::new();
    for n in 0..20 {
        let position = append(&fixture.replicas[n % 2], request("channel", "x")).await.position;
        assert!(position.offset > last, "{} does not follow {last}", position.offset);
        last = position.offset;
        epochs.insert(position.epoch);
    }
    assert_eq!(epochs.len(), 1);
    assert!(!epochs.iter().any(|epoch| epoch.as_str().is_empty()));
}

/// "Calls to `append` by one replica for one channel take effect in the order of the calls."
pub async fn pipelined_appends_take_effect_in_the_order_of_the_calls(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let recorder = Recorder::new();
    log.subscribe("channel", recorder.clone()).await.unwrap();
    let calls: Vec<_> = (0..200).map(|n| log.append(request("channel", n.to_string()))).collect();
    let offsets: Vec<u64> = join_all(calls).await.into_iter().map(|done| done.unwrap().position.offset).collect();
    assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
    recorder.until("200 publications", |seen| seen.offsets().len() >= 200).await;
    assert_eq!(recorder.offsets(), offsets);
    let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(texts(&read(log, "channel", Since::End, false, KEEP).await), expected);
}

/// "The future need not be polled for the append to proceed once it was polled first."
pub async fn a_polled_append_proceeds_by_itself(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let recorder = Recorder::new();
    log.subscribe("channel", recorder.clone()).await.unwrap();
    let mut call = log.append(request("channel", "alone"));
    let _ = futures_util::poll!(&mut call);
    recorder.until("the publication", |seen| seen.entries().len() == 1).await;
}

/// The same key on the same channel appends once; the retry resolves to the first position.
pub async fn an_idempotency_key_appends_once_on_any_replica(fixture: &Fixture<dyn Log>) {
    let call = || Append { idempotency: key("api", "k"), ..request("channel", "once") };
    let first = append(&fixture.replicas[0], call()).await;
    append(&fixture.replicas[0], request("channel", "other")).await;
    let second = append(&fixture.replicas[1], call()).await;
    assert!(!first.duplicate && second.duplicate);
    assert_eq!(first.position, second.position);
    assert_eq!(texts(&read(&fixture.replicas[1], "channel", Since::End, false, KEEP).await), ["once", "other"]);
}

/// A key is of its channel and its scope: the same text elsewhere is another key.
pub async fn idempotency_keys_of_others_do_not_collide(fixture: &Fixture<dyn Log>) {
    for (channel, scope, text) in
        [("one", "api", "k"), ("two", "api", "k"), ("one", "user", "k"), ("one", "ap", "ik"), ("on", "eapi", "k")]
    {
        let call = Append { idempotency: key(scope, text), ..request(channel, "x") };
        assert!(!append(&fixture.replicas[0], call).await.duplicate, "{channel} {scope} {text}");
    }
    // Many channels, so that some share whatever the log is divided into.
    for n in 0..32 {
        let call = Append { idempotency: key("api", "k"), ..request(&format!("many-{n}"), "x") };
        assert!(!append(&fixture.replicas[1], call).await.duplicate, "many-{n}");
    }
}

/// A retry while the first attempt is under way appends once too.
pub async fn concurrent_retries_append_once(fixture: &Fixture<dyn Log>) {
    let call = |n: usize| {
        let request = Append { idempotency: key("api", "k"), ..request("channel", "once") };
        fixture.replicas[n % 2].append(request)
    };
    let done: Vec<_> = join_all((0..8).map(call)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(done.iter().filter(|appended| !appended.duplicate).count(), 1, "{done:?}");
    assert!(done.iter().all(|appended| appended.position == done[0].position), "{done:?}");
    assert_eq!(texts(&read(&fixture.replicas[0], "channel", Since::End, false, KEEP).await), ["once"]);
}

/// `expected` is the offset of the channel's last publication, 0 when there never was one.
pub async fn expected_offset_decides(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let call = |expected, text: &str| Append { expected: Some(expected), ..request("channel", text) };
    append(log, request("neighbour", "x")).await;
    let first = append(log, call(0, "first")).await.position.offset;
    let again = fixture.replicas[1].append(call(0, "no")).await;
    assert_eq!(again, Err(AppendError::Conflict { expected: 0, last: first }));
    append(log, request("neighbour", "x")).await;
    let second = append(&fixture.replicas[1], call(first, "second")).await.position.offset;
    for wrong in [0, first, second + 1] {
        assert_eq!(log.append(call(wrong, "no")).await, Err(AppendError::Conflict { expected: wrong, last: second }));
    }
    assert_eq!(texts(&read(log, "channel", Since::End, false, KEEP).await), ["first", "second"]);
    let tail = log.tail("channel").await.unwrap().position.offset;
    append(log, call(tail, "third")).await;
}

/// The key is looked at before the condition, which the first attempt itself has made false.
pub async fn a_retry_of_a_conditional_append_is_a_duplicate(fixture: &Fixture<dyn Log>) {
    let call = || Append { expected: Some(0), idempotency: key("api", "k"), ..request("channel", "once") };
    let first = append(&fixture.replicas[0], call()).await;
    let retry = append(&fixture.replicas[1], call()).await;
    assert!(retry.duplicate);
    assert_eq!(first.position, retry.position);
    // A refused attempt does not use its key up.
    let refused = Append { expected: Some(0), idempotency: key("api", "k2"), ..request("channel", "later") };
    assert!(matches!(fixture.replicas[0].append(refused.clone()).await, Err(AppendError::Conflict { .. })));
    let allowed = Append { expected: Some(first.position.offset), ..refused };
    assert!(!append(&fixture.replicas[1], allowed).await.duplicate);
}

/// Two replicas that expect the same: exactly one appends, in each of many rounds.
pub async fn of_two_concurrent_conditional_appends_one_wins(fixture: &Fixture<dyn Log>) {
    let mut last = 0;
    for round in 0..20 {
        let call = |replica: usize| {
            let request = Append { expected: Some(last), ..request("channel", format!("{round}")) };
            let log = fixture.replicas[replica].clone();
            tokio::spawn(async move { log.append(request).await })
        };
        let done: Vec<_> = join_all([call(0), call(1)]).await.into_iter().map(Result::unwrap).collect();
        let won: Vec<u64> = done.iter().flatten().map(|appended| appended.position.offset).collect();
        assert_eq!(won.len(), 1, "round {round}: {done:?}");
        assert!(done.contains(&Err(AppendError::Conflict { expected: last, last: won[0] })), "round {round}: {done:?}");
        last = won[0];
    }
    assert_eq!(read(&fixture.replicas[0], "channel", Since::End, false, KEEP).await.entries.len(), 20);
}

/// A publication over the log's limit is refused at once, and what follows is not hurt.
pub async fn too_large_is_refused_and_harmless(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let size = 64 << 20;
    let call = log.append(request("channel", vec![b'x'; size]));
    match tokio::time::timeout(PATIENCE, call).await.expect("ends in bounded time") {
        Err(AppendError::TooLarge { max, .. }) => assert!(max < size),
        other => panic!("{other:?}"),
    }
    append(log, request("channel", "small")).await;
    assert_eq!(texts(&read(log, "channel", Since::End, false, KEEP).await), ["small"]);
}

/// Payload, tags and information arrive as they were given, live and in history.
pub async fn publications_come_back_untouched(fixture: &Fixture<dyn Log>) {
    let recorder = Recorder::new();
    fixture.replicas[1].subscribe("channel", recorder.clone()).await.unwrap();
    let info = ClientInfo {
        user: "ü".into(),
        client: "c-1".into(),
        conn_info: r#"{"b":1, "a":12345678901234567890}"#.into(),
        chan_info: vec![0, 255].into(),
    };
    let tags = BTreeMap::from([("k".to_owned(), "v \"\n\0".to_owned()), (String::new(), String::new())]);
    let payloads: [&[u8]; 5] =
        [b"", b"{\"b\":1,  \"a\":12345678901234567890}", b"\r\n\r\n\0", &[0, 159, 146, 150], &[255; 4096]];
    let mut sent = Vec::new();
    for data in payloads {
        let publication = Publication {
            data: data.to_vec().into(),
            info: Some(info.clone()),
            tags: tags.clone(),
            offset: 77,
            ..Publication::default()
        };
        let call = Append { publication: publication.clone(), ..request("channel", "") };
        let offset = append(&fixture.replicas[0], call).await.position.offset;
        sent.push(Publication { offset, ..publication });
    }
    let page = read(&fixture.replicas[1], "channel", Since::End, false, KEEP).await;
    recorder.until("all publications", |seen| seen.entries().len() == sent.len()).await;
    for entries in [page.entries, recorder.entries()] {
        let got: Vec<Publication> = entries.iter().map(|entry| entry.publication.clone()).collect();
        assert_eq!(got, sent);
        assert!(entries.iter().all(|entry| entry.offset == entry.publication.offset && entry.stored_at_ms > 0));
    }
}

/// No name is another's pattern, prefix or encoding.
pub async fn any_channel_name_is_a_channel_of_its_own(fixture: &Fixture<dyn Log>) {
    let long = "x".repeat(MAX_CHANNEL_BYTES);
    let longer_by_unicode = "ü".repeat(MAX_CHANNEL_BYTES / 2);
    let names = [
        "a",
        "A",
        "a b",
        " a",
        "a ",
        "a.b",
        "a..b",
        ".a",
        "a.",
        ".",
        "*",
        ">",
        "a.*",
        "a.>",
        "a*",
        "\0",
        "a\0b",
        "\r\n",
        "a%20b",
        "a=20b",
        "%",
        "=",
        "_",
        "a_b",
        "a-b",
        "a/b",
        "a\\b",
        "a:b",
        "$JS.API.>",
        "#u1",
        "日本語",
        "🂡",
        "{tag}",
        "a{tag}b",
        &long,
        &long[1..],
        &longer_by_unicode,
    ];
    let mut recorders = Vec::new();
    for name in names {
        let recorder = Recorder::new();
        fixture.replicas[1].subscribe(name, recorder.clone()).await.unwrap();
        recorders.push(recorder);
    }
    for name in names {
        append(&fixture.replicas[0], request(name, name)).await;
    }
    for (name, recorder) in names.iter().zip(&recorders) {
        recorder.until(name, |seen| !seen.entries().is_empty()).await;
        let page = read(&fixture.replicas[1], name, Since::End, false, KEEP).await;
        assert_eq!(texts(&page), [*name]);
    }
    for (name, recorder) in names.iter().zip(&recorders) {
        let got: Vec<_> = recorder.entries().iter().map(|entry| entry.publication.data.clone()).collect();
        assert_eq!(got, [name.as_bytes().to_vec()], "{name:?}");
    }
}

/// The tail has the last position and the version of the newest publication that had one.
pub async fn the_tail_has_the_newest_version(fixture: &Fixture<dyn Log>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let empty = one.tail("channel").await.unwrap();
    assert_eq!((empty.position.offset, empty.version), (0, None));
    let version = |number, scope: &str| Some(Version { number, scope: scope.into() });
    let call = |version| Append { version, ..request("channel", "x") };
    append(one, call(version(7, "a"))).await;
    let second = append(one, call(version(2, "b"))).await.position;
    let tail = other.tail("channel").await.unwrap();
    assert_eq!((tail.position, tail.version), (second, version(2, "b")));
    let last = fill(other, "channel", 2, KEEP).await.remove(1);
    let tail = one.tail("channel").await.unwrap();
    assert_eq!((tail.position, tail.version), (last, version(2, "b")));
}
