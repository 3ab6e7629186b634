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
        selinux: None,
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
    for cut in [0, 1, whole.len() / 2, whole.len() - 2] {
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
fn a_line_that_was_cut_off_leaves_the_one_before() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.write_pod(&pod(1)).unwrap();
    let path = store.pod_folder(&pod(1).id).join("pod.1.json");
    let first = fs::read(&path).unwrap();
    let down = PodRecord { life: PodLife::NotReady, ..pod(1) };
    store.write_pod(&down).unwrap();
    let both = fs::read(&path).unwrap();
    assert!(both.starts_with(&first) && both.len() > first.len(), "the second is a line of the same file");
    drop(store);
    for cut in first.len() + 1..both.len() {
        fs::write(&path, &both[..cut]).unwrap();
        let store = Store::open(root.path()).unwrap();
        let life = store.load().unwrap().pods[0].0.life;
        // All but the line's end is the line.
        assert_eq!(
            life,
            if cut + 1 < both.len() { PodLife::Ready } else { PodLife::NotReady },
            "cut at {cut}"
        );
        // What comes next is not glued to what was cut off.
        store.write_pod(&down).unwrap();
        assert_eq!(store.load().unwrap().pods[0].0.life, PodLife::NotReady, "cut at {cut}");
        fs::remove_file(store.pod_folder(&pod(1).id).join("pod.2.json")).unwrap();
    }
    // Zeros are what a file system may leave of a block that did not reach the disk.
    let mut zeros = first.clone();
    zeros.resize(both.len(), 0);
    fs::write(&path, zeros).unwrap();
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.load().unwrap().pods[0].0.life, PodLife::Ready);
}

#[test]
fn a_record_that_is_written_often_does_not_grow_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for number in 0..1000 {
        store.write_pod(&PodRecord { created_at: number, ..pod(1) }).unwrap();
    }
    let folder = store.pod_folder(&pod(1).id);
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let records: Vec<_> = files.iter().filter(|path| path.is_file()).collect();
    assert_eq!(records.len(), 1, "{files:?}");
    assert!(fs::metadata(records[0]).unwrap().len() <= MAX_APPENDED);
    assert_eq!(store.load().unwrap().pods[0].0.created_at, 999);
}

#[test]
fn folders_are_the_same_with_and_without_a_spare() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.settle();
    let spares = || fs::read_dir(root.path().join("spare")).unwrap().count();
    let all = spares();
    assert!(all > 10, "{all}");
    for byte in 0..60 {
        store.write_pod(&pod(byte)).unwrap();
        let id = ContainerId::from_bytes([byte; 32]);
        store.write_config(&pod(byte).id, &id, &1).unwrap();
        for name in ["upper", "work"] {
            let folder = store.container_folder(&pod(byte).id, &id).join(name);
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        }
    }
    store.settle();
    assert_eq!(spares(), all);
    drop(store);
    let store = Store::open(root.path()).unwrap();
    store.settle();
    assert_eq!(spares(), all);
    assert_eq!(store.load().unwrap().pods.len(), 60);
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
