use super::{RedisCluster, RedisServer};

#[tokio::test]
async fn a_server_ends_with_its_test() {
    let server = RedisServer::start().await.unwrap();
    server.ask(&["SET", "a", "1"]).await.unwrap();
    assert_eq!(server.keys_without_expiry().await.unwrap(), ["a"]);
    let pid = server.pid().unwrap();
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_cut_replica_takes_over_without_the_last_write() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let owner = cluster.owner(0).await.unwrap();
    // The empty hash tag of "{}..." is none; this key's slot is looked up.
    let key = (0..).map(|n| n.to_string()).find(|key| fred::util::redis_keyslot(key.as_bytes()) == 0).unwrap();
    cluster.servers[owner].ask(&["SET", &key, "before"]).await.unwrap();
    assert_eq!(cluster.servers[owner].ask(&["WAIT", "1", "1000"]).await.unwrap().number(), 1);
    let replica = cluster.cut_replica(owner).await.unwrap();
    cluster.servers[owner].ask(&["SET", &key, "after"]).await.unwrap();
    cluster.servers[owner].kill().unwrap();
    cluster.servers[replica].resume().unwrap();
    cluster.ready(std::time::Duration::from_secs(30)).await.unwrap();
    assert_eq!(cluster.owner(0).await.unwrap(), replica);
    assert_eq!(cluster.servers[replica].ask(&["GET", &key]).await.unwrap().text(), "before");
}
