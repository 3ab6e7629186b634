//! What ADD and DEL take. Figures are printed (`--nocapture`); the limits only catch a wrong order of magnitude.

use std::time::{Duration, Instant};

use crate::bridge::DUAL_STACK;
use crate::node::{Pod, on_a_node, reap_all};

const RUNS: usize = 50;

/// Median and minimum.
fn median(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort();
    (all[all.len() / 2], all[0])
}

#[test]
fn add_and_del_wait_for_nothing() {
    const IPV4: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
      {"type":"bridge","bridge":"bwt1","isDefaultGateway":true,"ipMasq":true,
       "ipam":{"type":"host-local","dataDir":"@DATA@","ranges":[[{"subnet":"10.231.1.0/24"}]]}},
      {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
    for (name, conflist) in [("IPv4", IPV4), ("dual stack", DUAL_STACK)] {
        on_a_node(move |node| {
            node.conflist(conflist);
            let cni = node.cni();
            let (mut adds, mut dels, mut reaps) = (Vec::new(), Vec::new(), Vec::new());
            for i in 0..RUNS {
                let pod = Pod::new(&format!("pod{i}"));
                let begin = Instant::now();
                pod.add(&cni);
                adds.push(begin.elapsed());
                let begin = Instant::now();
                pod.del(&cni);
                dels.push(begin.elapsed());
                let begin = Instant::now();
                reap_all(&cni);
                reaps.push(begin.elapsed());
            }
            let (add, del, reap) = (median(adds), median(dels), median(reaps));
            eprintln!("{name}: median and minimum of {RUNS}: ADD {add:?}, DEL {del:?}, reap {reap:?}");
            assert!(add.0 < Duration::from_millis(100) && del.0 < Duration::from_millis(100));
        });
    }
}
