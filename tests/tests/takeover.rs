//! The daemon is killed at any moment of a pod's life; a client that repeats its calls, as the kubelet does, finds
//! everything as it should be: no log line lost, the exit as it was, nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod};
use tonic::Code;

const ROUNDS: u32 = 20;
const LINES: usize = 40;

#[test]
fn killed_at_twenty_random_moments_it_loses_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let image = {
        let mut client = runtime.block_on(Client::connect(&daemon));
        runtime.block_on(client.pull(&daemon));
        client.image
    };
    let clean = Inventory::take(daemon.folder());
    let (socket, folder) = (daemon.socket(), daemon.folder().to_owned());
    let logs = |round: u32| folder.join(format!("logs{round}"));
    // The moments lie in a life as long as it is on this machine.
    let start = Instant::now();
    runtime.block_on(life(socket.clone(), image.clone(), ROUNDS, logs(ROUNDS)));
    let whole = start.elapsed();
    let mut random = Random::new();
    for round in 0..ROUNDS {
        let life = runtime.spawn(life(socket.clone(), image.clone(), round, logs(round)));
        let moment = Duration::from_micros(random.below(whole.as_micros() as u64));
        println!("round {round}: kill after {moment:?} of {whole:?}");
        runtime
            .block_on(async { tokio::time::timeout(moment, std::future::pending::<()>()).await })
            .unwrap_err();
        daemon.kill();
        daemon.restart();
        runtime.block_on(life).unwrap();
    }
    clean.wait_equal(&folder);
}

/// One pod from first to last, every call repeated until it is answered.
async fn life(socket: PathBuf, image: String, round: u32, logs: PathBuf) {
    let name = format!("life{round}");
    let connect = || Client::reach(socket.clone(), image.clone());
    let config = pod(&name, &logs);
    let id =
        insist("run", || async { connect().await?.run(config.clone()).await.map_err(Problem::from) }).await;
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; usleep 2000 2>/dev/null || true; done; exit 7"
    );
    let ctr = insist("create", || async {
        let mut client = connect().await?;
        let config = container(&client, "main", &script);
        Ok(client.create(&id, config).await?)
    })
    .await;
    insist("start", || async {
        let mut client = connect().await?;
        match client.runtime.start_container(v1::StartContainerRequest { container_id: ctr.clone() }).await {
            // The call before was heard, its answer was not.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            other => Ok(other.map(drop)?),
        }
    })
    .await;
    let ended = insist("end", || async {
        let status = connect().await?.status(&ctr).await?;
        if status.state() == v1::ContainerState::ContainerExited { Ok(status) } else { Err(Problem::NotYet) }
    })
    .await;
    // A start that was under way when the daemon died, and never reached the monitor, is a StartError; all others ran
    // to their end, whatever happened to the daemon.
    if ended.reason == "StartError" {
        assert_eq!(ended.exit_code, 128, "{ended:?}");
    } else {
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"), "round {round}: {ended:?}");
        assert!(ended.finished_at >= ended.started_at && ended.started_at > 0, "{ended:?}");
        let log = std::fs::read_to_string(logs.join("main.log")).unwrap();
        let lines: Vec<&str> = log.lines().filter_map(|line| line.split(" stdout F ").nth(1)).collect();
        let wanted: Vec<String> = (1..=LINES).map(|number| format!("line {number}")).collect();
        assert_eq!(lines, wanted, "round {round}");
    }
    insist("remove", || async { Ok(connect().await?.remove(&id).await?) }).await;
}

enum Problem {
    NotYet,
    Status(tonic::Status),
}

impl From<tonic::Status> for Problem {
    fn from(status: tonic::Status) -> Problem {
        Problem::Status(status)
    }
}

impl From<tonic::transport::Error> for Problem {
    fn from(_: tonic::transport::Error) -> Problem {
        Problem::NotYet
    }
}

/// Repeats a call while the daemon is away. Any other refusal is a failure of the test.
async fn insist<T, F: Future<Output = Result<T, Problem>>>(what: &str, mut call: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(Problem::NotYet) => {}
            Err(Problem::Status(status)) => {
                // A status with a source was made here, out of a broken connection; the daemon's have none.
                let away = status.code() == Code::Unavailable || std::error::Error::source(&status).is_some();
                assert!(away, "{what}: {status:?}");
            }
        }
        assert!(Instant::now() < deadline, "{what}: no answer");
        tokio::task::yield_now().await;
    }
}

/// Numbers that differ from run to run; each round prints its moment.
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
