//! Two hundred pods, and then nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use bowline_tests::{Client, Daemon, Inventory, container, pod};

#[test]
fn two_hundred_pods_leave_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let clean = Inventory::take(daemon.folder());
    let descriptors =
        |daemon: &Daemon| std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().unwrap())).unwrap().count();
    let logs = daemon.folder().join("logs");
    let round = |from: u32| {
        let (client, logs) = (client.clone(), logs.clone());
        async move {
            let mut pods = tokio::task::JoinSet::new();
            for number in from..from + 8 {
                let (mut client, logs) = (client.clone(), logs.clone());
                pods.spawn(async move {
                    let id = client.run(pod(&format!("pod{number}"), &logs)).await.unwrap();
                    let config = container(&client, &format!("ctr{number}"), "sleep 1000");
                    let ctr = client.start(&id, config).await.unwrap();
                    assert_eq!(client.exec(&ctr, &["echo", "here"]).await.unwrap().stdout, b"here\n");
                    client.remove(&id).await.unwrap();
                });
            }
            pods.join_all().await;
        }
    };
    runtime.block_on(round(0));
    clean.wait_equal(daemon.folder());
    let before = descriptors(&daemon);
    for from in (8..200).step_by(8) {
        runtime.block_on(round(from));
    }
    clean.wait_equal(daemon.folder());
    // The network code keeps a netlink socket for each call that ever ran at once, so a handful may come and stay;
    // one kept per pod would show as two hundred.
    bowline_tests::wait_for(
        "the daemon's descriptors are as before",
        std::time::Duration::from_secs(60),
        || descriptors(&daemon) <= before + 12,
    );
    println!("descriptors of the daemon: {before} after 8 pods, {} after 200", descriptors(&daemon));
    daemon.stop();
}
