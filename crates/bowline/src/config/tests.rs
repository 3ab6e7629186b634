use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Files(folder)
    }

    fn load(&self, flags: Flags) -> Result<Config, ConfigError> {
        load(Some(&self.0.path().join("config.toml")), flags)
    }
}

#[track_caller]
fn problem(text: &str) -> String {
    let files = Files::new(&[("config.toml", text)]);
    let error = files.load(Flags::default()).expect_err("must be refused").to_string();
    error.replace(&files.0.path().display().to_string(), "")
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = Files::new(&[("config.toml", "")]).load(Flags::default()).unwrap();
    assert_eq!(config.root, Path::new("/var/lib/bowline"));
    assert_eq!(config.state, Path::new("/run/bowline"));
    assert_eq!(config.socket, Path::new("/run/bowline/bowline.sock"));
    assert_eq!(config.default_network, None);
    assert_eq!(config.settings.log.level, Level::Info);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_was_meant() {
    assert_eq!(
        problem("root = \"/a\"\n\nlisen = \"unix:///b\"\n"),
        "/config.toml:3: there is no key `lisen` here; did you mean `listen`?"
    );
    assert_eq!(
        problem("[images]\nmax_concurent_downloads = 2\n"),
        "/config.toml:2: there is no key `max_concurent_downloads` here; did you mean `max_concurrent_downloads`?"
    );
    assert_eq!(
        problem("[log]\nlevel = \"warm\"\n"),
        "/config.toml:2: there is no value `warm` here; did you mean `warn`?"
    );
    assert_eq!(
        problem("[log]\nxyz = 1\n"),
        "/config.toml:2: there is no key `xyz` here; there are level, format"
    );
}

#[test]
fn wrong_values_are_refused() {
    assert!(problem("root = 3\n").starts_with("/config.toml:1: "));
    assert!(problem("root = \"/a\"\nroot = \"/b\"\n").starts_with("/config.toml:2: "));
    assert!(problem("[images]\nstall_timeout_seconds = 0\n").starts_with("/config.toml:2: "));
    assert!(problem("[default_network]\nsubnet = \"10.0.0.0/40\"\n").starts_with("/config.toml:2: "));
    assert_eq!(problem("root = \"a\""), "root: `a` is no absolute path");
    assert_eq!(problem("listen = \"tcp://1:2\""), "listen: `tcp://1:2` is no `unix://` and an absolute path");
    assert_eq!(problem("cni.bin_dirs = [\"x\"]"), "cni.bin_dirs: `x` is no absolute path");
    assert!(
        problem("default_network.bridge = \"a-name-that-is-too-long\"").starts_with("default_network.bridge")
    );
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    assert!(matches!(
        load(Some(Path::new("/nowhere/config.toml")), Flags::default()),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn drop_ins_are_merged_by_key_and_flags_win() {
    let files = Files::new(&[
        (
            "config.toml",
            "root = \"/1\"\nstate = \"/1\"\n[log]\nlevel = \"warn\"\nformat = \"json\"\n[images]\npinned = [\"a\", \"b\"]\n",
        ),
        ("conf.d/20.toml", "state = \"/20\"\n[images]\npinned = [\"c\"]\n"),
        ("conf.d/10.toml", "state = \"/10\"\nlisten = \"unix:///10\"\n[log]\nlevel = \"debug\"\n"),
        ("conf.d/notes.txt", "not toml"),
    ]);
    let flags = Flags { listen: Some("unix:///flag".into()), default_network: true, ..Flags::default() };
    let config = files.load(flags).unwrap();
    assert_eq!(config.root, Path::new("/1"));
    assert_eq!(config.state, Path::new("/20"), "later names win");
    assert_eq!(config.socket, Path::new("/flag"), "flags win");
    assert_eq!((config.settings.log.level, config.settings.log.format), (Level::Debug, Format::Json));
    assert_eq!(config.settings.images.pinned, ["c"], "lists are replaced");
    let network = config.default_network.unwrap();
    assert_eq!((network.bridge.as_str(), network.data_dir.as_path()), ("bowline0", Path::new("/1/networks")));
}

#[test]
fn a_bad_drop_in_is_named() {
    let files = Files::new(&[("config.toml", ""), ("conf.d/a.toml", "rot = \"/x\"\n")]);
    let error = files.load(Flags::default()).unwrap_err().to_string();
    assert!(error.ends_with("conf.d/a.toml:1: there is no key `rot` here; did you mean `root`?"), "{error}");
}

/// The page that describes the keys names them all.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../../docs/operate/configuration.md");
    let settings = Settings {
        root: Some("/r".into()),
        state: Some("/s".into()),
        listen: Some(String::new()),
        monitor: Some("/m".into()),
        default_network: NetworkSettings {
            subnet_v6: Some("fd00::/64".parse().unwrap()),
            data_dir: Some("/d".into()),
            ..NetworkSettings::default()
        },
        cni: CniSettings { conf_dirs: Some(Vec::new()), bin_dirs: Some(Vec::new()) },
        images: ImageSettings {
            registry_config_dirs: Some(Vec::new()),
            max_concurrent_downloads: NonZeroU32::new(1),
            stall_timeout_seconds: NonZeroU32::new(1),
            pinned: Vec::new(),
        },
        nri: NriSettings {
            socket_path: Some("/s".into()),
            plugin_path: Some("/p".into()),
            plugin_config_path: Some("/c".into()),
            registration_timeout_seconds: NonZeroU32::new(1),
            request_timeout_seconds: NonZeroU32::new(1),
            synchronize_timeout_seconds: NonZeroU32::new(1),
            ..NriSettings::default()
        },
        ..Settings::default()
    };
    for (key, value) in Table::try_from(settings).unwrap() {
        let keys: Vec<_> = match value {
            Value::Table(inner) => inner.keys().map(|inner| format!("{key}.{inner}")).collect(),
            _ => vec![key],
        };
        for key in keys {
            assert!(
                page.contains(&format!("`{key}`")),
                "docs/operate/configuration.md does not tell of `{key}`"
            );
        }
    }
}

#[test]
fn daemons_side_by_side_have_plugins_of_their_own() {
    let nri = |text: &str| {
        let config = Files::new(&[("config.toml", text)]).load(Flags::default()).unwrap();
        config.nri.map(|nri| (nri.socket, nri.config.plugin_folder))
    };
    let socket = Some(PathBuf::from("/var/run/nri/nri.sock"));
    assert_eq!(nri(""), Some((socket, PathBuf::from("/opt/nri/plugins"))));
    let own = (Some(PathBuf::from("/x/nri.sock")), PathBuf::from("/x/nri-plugins"));
    assert_eq!(nri("state = \"/x\"\n"), Some(own));
    let named = nri("state = \"/x\"\n[nri]\nsocket_path = \"/y/s\"\nplugin_path = \"/z\"\n");
    assert_eq!(named, Some((Some(PathBuf::from("/y/s")), PathBuf::from("/z"))));
    assert_eq!(nri("[nri]\ndisable_connections = true\n").map(|(socket, _)| socket), Some(None));
    assert_eq!(nri("[nri]\nenable = false\n"), None);
    assert!(problem("[nri]\nplugin_path = \"opt\"\n").contains("nri.plugin_path"));
    assert!(problem("[nri]\nrequest_timeout_seconds = 0\n").starts_with("/config.toml:2: "));
}

#[test]
fn the_file_that_is_installed_says_what_is_true() {
    let text = include_str!("../../../../packaging/config.toml");
    let settings = |text: &str| {
        Files::new(&[("config.toml", text)]).load(Flags::default()).map(|config| config.settings)
    };
    assert_eq!(settings(text).unwrap(), Settings::default());
    // Every line that is commented out can be taken in, and is the default.
    let keys = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.contains(" = ") || line.starts_with('['));
    let opened = settings(&keys.collect::<Vec<_>>().join("\n")).unwrap();
    assert_eq!((opened.apparmor, opened.selinux, opened.log, opened.nri), Default::default());
    let config = Files::new(&[("config.toml", "")]).load(Flags::default()).unwrap();
    assert_eq!((opened.root, opened.state), (Some(config.root), Some(config.state)));
}

#[test]
fn categories_go_in_pairs() {
    for range in [0, 1, 1025] {
        let problem = problem(&format!("[selinux]\ncategory_range = {range}\n"));
        assert!(problem.contains("selinux.category_range"), "{problem}");
    }
}

#[test]
fn a_profile_must_have_a_name() {
    assert!(problem("[apparmor]\ndefault_profile = \"\"\n").contains("apparmor.default_profile"));
}
