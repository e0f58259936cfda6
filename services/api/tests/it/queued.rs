//! Queued commands.

use futures_util::FutureExt;
use plenum_api::{Commands, QueuedCommand};
use serde_json::json;

use crate::fixture::fixture;

#[tokio::test]
async fn a_part_of_a_broadcast_costs_the_same_however_many_there_are() {
    let fixture = fixture();
    let commands = Commands::new(fixture.node.clone());
    let cost = |channels: usize| {
        let channels: Vec<String> = (0..channels).map(|number| format!("log:{number}")).collect();
        let command = json!({ "method": "broadcast", "payload": { "channels": channels, "data": { "some": "data" } } });
        let command = QueuedCommand::decode(command.to_string().as_bytes()).unwrap();
        let part = channels.len() - 1;
        assert_eq!((command.subjects().len(), command.channel(part)), (channels.len(), Some(&*channels[part])));
        let run = || commands.run(&command, part, "key").now_or_never().unwrap().unwrap();
        // The first one makes the channel.
        run();
        allocation_counter::measure(run).count_total
    };
    let (few, many) = (cost(10), cost(10_000));
    assert!(few > 0 && many < few + 20, "{few} allocations of one in ten, {many} of one in ten thousand");
}

#[tokio::test]
async fn a_broadcast_that_names_no_channel_somewhere_fails_there_and_nowhere_else() {
    let fixture = fixture();
    let commands = Commands::new(fixture.node.clone());
    let command = json!({ "method": "broadcast", "payload": { "channels": ["log:a", ""], "data": 1 } });
    let command = QueuedCommand::decode(command.to_string().as_bytes()).unwrap();
    commands.run(&command, 0, "key").await.unwrap();
    let error = commands.run(&command, 1, "key").await.unwrap_err();
    assert!(error.code == 107 && !error.is_temporary(), "{error:?}");
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    assert_eq!(history["publications"].as_array().unwrap().len(), 1, "{history}");
}
