use super::*;
use bowline_model::spec::PodSpec;

fn pod(byte: u8) -> PodRecord {
    PodRecord {
        version: VERSION,
        boot: "boot".into(),
        id: SandboxId::from_bytes([byte; 32]),
        spec: PodSpec::default(),
        created_at: 1,
        life: PodLife::Ready,
        cleaned: false,
        network: None,
        monitor: 0,
        cgroup: String::new(),
        cgroup_made: 0,
        resources: Default::default(),
    }
}

#[test]
fn what_was_written_is_read_back() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    store.write_pod(&PodRecord { life: PodLife::NotReady, ..pod(1) }).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.pods, vec![(PodRecord { life: PodLife::NotReady, ..pod(1) }, vec![])]);
    assert!(loaded.bad.is_empty());
}

#[test]
fn a_second_daemon_is_told_so() {
    let root = tempfile::tempdir().unwrap();
    let _first = Store::open(root.path()).unwrap();
    let error = Store::open(root.path()).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("--root"));
}

#[test]
fn a_bad_record_costs_one_pod() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    store.write_pod(&pod(2)).unwrap();
    let whole = fs::read(store.pod_folder(&pod(1).id).join("pod.1.json")).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(store.pod_folder(&pod(1).id).join("pod.1.json"), &whole[..cut]).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.pods.len(), 1, "cut at {cut}");
        assert_eq!(loaded.pods[0].0.id, pod(2).id);
        assert_eq!(loaded.bad.len(), 1);
        assert_eq!(loaded.unreadable, vec![pod(1).id.to_string()]);
    }
}

#[test]
fn a_write_that_was_cut_off_leaves_the_record_before() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    fs::write(store.pod_folder(&pod(1).id).join("pod.new"), b"{\"half").unwrap();
    assert_eq!(store.load().unwrap().pods.len(), 1);
}

#[test]
fn removal_is_seen_at_once_and_ends_empty() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    store.remove_pod(&pod(1).id).unwrap();
    store.remove_pod(&pod(1).id).unwrap();
    assert!(store.load().unwrap().pods.is_empty());
    store.settle();
    assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_torn_generation_falls_back_to_the_one_before() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    let folder = store.pod_folder(&pod(1).id);
    fs::write(folder.join("pod.2.json"), b"{").unwrap();
    assert_eq!(store.load().unwrap().pods.len(), 1);
    store.write_pod(&PodRecord { life: PodLife::NotReady, ..pod(1) }).unwrap();
    assert_eq!(store.load().unwrap().pods[0].0.life, PodLife::NotReady);
}
