//! Registries that demand, fail, lie, and hide behind mirrors.

#![allow(clippy::unwrap_used)] // In a test, a panic is the report.

mod support;

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use bowline_image::{Auth, PullError};
use bowline_testkit::{AuthMode, BuiltImage, Fault, ImageBuilder, Layer, Registry};
use support::Node;

fn built() -> BuiltImage {
    ImageBuilder::new().layer(Layer::new().file("f", 0o644, support::noise(600_000))).build()
}

fn login(username: &str, password: &str) -> Auth {
    Auth { username: username.into(), password: password.into(), ..Auth::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_or_failing_is_unavailable() {
    let registry = Registry::start();
    let name = registry.push("app", "latest", &built());
    let node = Node::with(|config| config.stall_timeout = Duration::from_millis(200)).await;
    for fault in [Fault::Status(503, 100), Fault::HangAfter(10, 100), Fault::BreakAfter(10, 100)] {
        registry.fault("/manifests/", fault.clone());
        let error = node.images.pull(&name, None).await.unwrap_err();
        assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{fault:?}: {error:?}");
        registry.heal();
    }
    let gone = Registry::start();
    let nobody = gone.push("app", "latest", &built());
    drop(gone);
    for name in [nobody.as_str(), "no-such-host.invalid/app"] {
        let error = node.images.pull(name, None).await.unwrap_err();
        assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{name}: {error:?}");
    }
    node.wait_until_empty().await;
    node.pull(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_troubles_are_ridden_out() {
    for fault in [
        Fault::Status(500, 2),
        Fault::TooMany(0, 2),
        Fault::HangAfter(200_000, 2),
        Fault::BreakAfter(100_000, 3),
        Fault::Delay(Duration::from_millis(50)),
    ] {
        for ranges in [true, false] {
            let registry = Registry::start();
            let image = built();
            let name = registry.push("app", "latest", &image);
            registry.fault(&image.layers[0], fault.clone());
            if !ranges {
                registry.fault(&image.layers[0], Fault::NoRanges);
            }
            let node = Node::with(|config| config.stall_timeout = Duration::from_millis(300)).await;
            node.pull(&name).await;
            if let Fault::BreakAfter(..) = fault {
                let layer = &image.layers[0];
                assert_eq!(registry.count("GET", layer), 4, "three breaks and a whole: {:?}", registry.log());
                // A connection that breaks may take along what was not read yet; then there is nothing to go on from.
                let resumed = registry.log().iter().filter(|request| request.range.is_some()).count();
                assert!(resumed <= 3, "{:?}", registry.log());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_refused_and_leaves_nothing() {
    let registry = Registry::start();
    let image = built();
    let name = registry.push("app", "latest", &image);
    let node = Node::new().await;
    let layer = image.layers[0].as_str();
    for (part, fault) in [
        (layer, Fault::Corrupt),
        (layer, Fault::Truncate(1000)),
        (image.id.as_str(), Fault::Corrupt),
        (image.id.as_str(), Fault::Truncate(10)),
    ] {
        registry.fault(part, fault.clone());
        let error = node.images.pull(&name, None).await.unwrap_err();
        assert!(matches!(error, PullError::WrongDigest { .. }), "{fault:?}: {error:?}");
        registry.heal();
        node.wait_until_empty().await;
    }
    let by_digest = format!("{}/app@{}", registry.host(), image.digest());
    registry.fault("/manifests/", Fault::Corrupt);
    let error = node.images.pull(&by_digest, None).await.unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { what: "manifest", .. }), "{error:?}");
    registry.heal();

    let lie = format!("sha256:{}", "1".repeat(64));
    let lying =
        ImageBuilder::new().layer(Layer::new().file("f", 0o644, "x")).claimed_diff_ids(&[&lie]).build();
    let error = node.images.pull(&registry.push("lie", "latest", &lying), None).await.unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { what: "the content of a layer", .. }), "{error:?}");
    let short = ImageBuilder::new().layer(Layer::new().file("f", 0o644, "x")).claimed_diff_ids(&[]).build();
    let error = node.images.pull(&registry.push("short", "latest", &short), None).await.unwrap_err();
    assert!(matches!(error, PullError::BadManifest { .. }), "{error:?}");
    node.wait_until_empty().await;
    assert!(node.images.list(None).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let registry = Registry::start();
    let image = built();
    let name = registry.push("app", "latest", &image);
    let node = Node::new().await;
    let host = registry.host();
    for missing in [format!("{host}/app:nope"), format!("{host}/nope"), format!("{host}/app@{}", image.id)] {
        let error = node.images.pull(&missing, None).await.unwrap_err();
        assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
    }
    registry.lose_blob(&image.layers[0]);
    assert!(matches!(node.images.pull(&name, None).await, Err(PullError::NotFound { .. })));
    assert!(matches!(node.images.pull("UPPER CASE", None).await, Err(PullError::BadReference { .. })));
    registry.put_manifest(
        "old",
        "latest",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        br#"{"schemaVersion":1,"name":"old","tag":"latest","fsLayers":[]}"#,
    );
    let error = node.images.pull(&format!("{host}/old"), None).await.unwrap_err();
    assert!(
        matches!(&error, PullError::BadManifest { reason, .. } if reason.contains("version 1")),
        "{error:?}"
    );
    node.wait_until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_work_in_every_form_and_only_at_home() {
    let registry =
        Registry::builder().auth(AuthMode::Basic { user: "me".into(), password: "secret".into() }).start();
    let name = registry.push("app", "latest", &built());
    let encoded = base64::engine::general_purpose::STANDARD.encode("me:secret");
    let here = registry.url();
    let elsewhere = "https://elsewhere.example";
    for (auth, good) in [
        (Some(login("me", "secret")), true),
        (Some(Auth { auth: encoded.clone(), ..Auth::default() }), true),
        (Some(Auth { server_address: here, ..login("me", "secret") }), true),
        (Some(Auth { server_address: elsewhere.into(), ..login("me", "secret") }), false),
        (Some(login("me", "wrong")), false),
        (Some(Auth::default()), false),
        (None, false),
    ] {
        let node = Node::new().await;
        match node.images.pull(&name, auth.clone()).await {
            Ok(_) => assert!(good, "{auth:?}"),
            Err(PullError::Denied { .. }) => assert!(!good, "{auth:?}"),
            Err(other) => panic!("{auth:?}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_tokens_are_fetched_used_and_renewed() {
    let registry = Registry::builder()
        .auth(AuthMode::Bearer {
            user: "me".into(),
            password: "secret".into(),
            identity_token: "refresh-me".into(),
            anonymous: false,
        })
        .start();
    let image = built();
    let name = registry.push("team/app", "latest", &image);
    let identity = Auth { identity_token: "refresh-me".into(), ..Auth::default() };
    let token = Auth { registry_token: "good-0".into(), ..Auth::default() };
    for (auth, method) in [(login("me", "secret"), "GET"), (identity, "POST"), (token, "none")] {
        let node = Node::new().await;
        let before = registry.count(method, "/token");
        node.images.pull(&name, Some(auth)).await.unwrap();
        let asked = registry.count(method, "/token") - before;
        assert_eq!(asked, usize::from(method != "none"), "one token serves the whole pull");
    }
    let get = registry.log().into_iter().find(|request| request.path.starts_with("/token?")).unwrap();
    assert_eq!(get.path, "/token?service=test-service&scope=repository%3Ateam%2Fapp%3Apull");
    // A token that expires in the middle is replaced once.
    registry.fault("/blobs/", Fault::ForgetTokens(1));
    let node = Node::new().await;
    node.images.pull(&name, Some(login("me", "secret"))).await.unwrap();
    registry.heal();
    for wrong in [
        Some(login("me", "wrong")),
        Some(Auth { identity_token: "stale".into(), ..Auth::default() }),
        Some(Auth { registry_token: "bad".into(), ..Auth::default() }),
        None,
    ] {
        let error = Node::new().await.images.pull(&name, wrong).await.unwrap_err();
        assert!(matches!(error, PullError::Denied { .. }), "{error:?}");
    }
    let open = Registry::builder()
        .auth(AuthMode::Bearer {
            user: "u".into(),
            password: "p".into(),
            identity_token: String::new(),
            anonymous: true,
        })
        .start();
    node.images.pull(&open.push("app", "latest", &image), None).await.unwrap();
    // Without OAuth2 at the token service, GET with the password still works.
    let both = Auth { identity_token: "x".into(), ..login("u", "p") };
    Node::new().await.images.pull(&open.push("app", "latest", &image), Some(both)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_credentials() {
    let storage = Registry::start();
    let registry =
        Registry::builder().auth(AuthMode::Basic { user: "me".into(), password: "secret".into() }).start();
    let image = built();
    let name = registry.push("app", "latest", &image);
    storage.push("app", "latest", &image);
    registry.fault("/blobs/", Fault::Redirect(storage.url()));
    let node = Node::new().await;
    node.images.pull(&name, Some(login("me", "secret"))).await.unwrap();
    assert_eq!(storage.count("GET", "/blobs/"), 2);
    assert!(storage.log().iter().all(|request| request.authorization.is_none()));
    registry.heal();
    registry.fault("/manifests/", Fault::Redirect(registry.url()));
    let error = Node::new().await.images.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{error:?}");
}

fn hosts_toml(dir: &Path, host: &str, text: &str) {
    let folder = dir.join("certs.d").join(host);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_re_read_at_each_pull() {
    let (first, second, origin) = (Registry::start(), Registry::start(), Registry::start());
    let image = built();
    let node = Node::new().await;
    let name = "registry.example/team/app:v1";
    second.push("team/app", "v1", &image);
    first.fault("/v2/", Fault::Status(500, 100));
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"{}\"]\n\
         capabilities = [\"pull\", \"resolve\"]\n[host.\"{}\".header]\nx-team = [\"a\"]\n",
        origin.url(),
        first.url(),
        second.url(),
        second.url()
    );
    hosts_toml(node.dir.path(), "registry.example", &text);
    let auth = login("me", "secret");
    let id = node.images.pull(name, Some(auth)).await.unwrap();
    assert_eq!(id.to_string(), image.id);
    assert_eq!(node.images.resolve(name).unwrap().repo_tags, [name]);
    assert!(origin.log().is_empty());
    let asked = second.log();
    assert!(asked.iter().all(|request| request.path.ends_with("?ns=registry.example")), "{asked:?}");
    assert!(asked.iter().all(|request| request.headers["x-team"] == "a"));
    assert!(asked.iter().all(|request| request.authorization.is_none()), "a mirror is another party");
    assert_eq!(first.count("GET", "/manifests/v1"), 1, "a mirror is asked once");

    // Not found at the mirrors: the server is asked. No restart needed.
    origin.push("team/app", "v2", &image);
    node.pull("registry.example/team/app:v2").await;
    assert_eq!(origin.count("GET", "/manifests/v2"), 1);

    // A mirror for content only is not asked for tags.
    let text = format!(
        "server = \"{}\"\n[host.\"{}/sub/v2\"]\ncapabilities = [\"pull\"]\noverride_path = true\n",
        origin.url(),
        second.url()
    );
    hosts_toml(node.dir.path(), "registry.example", &text);
    let before = second.count("GET", "/sub/v2/team/app/manifests/v3");
    origin.push("team/app", "v3", &image);
    node.pull("registry.example/team/app:v3").await;
    assert_eq!(second.count("GET", "/sub/v2/team/app/manifests/v3"), before);

    hosts_toml(node.dir.path(), "_default", &format!("server = \"{}\"\n", origin.url()));
    origin.push("any/where", "latest", &image);
    node.pull("unknown.example:5000/any/where").await;
    hosts_toml(node.dir.path(), "ported.example_5000_", &format!("server = \"{}\"\n", second.url()));
    second.push("x", "latest", &image);
    node.pull("ported.example:5000/x").await;

    hosts_toml(node.dir.path(), "registry.example", "server = [\n");
    let error = node.images.pull("registry.example/team/app:v3", None).await.unwrap_err();
    assert!(matches!(error, PullError::BadHostsToml { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_against_the_host_s_own_certificate() {
    let registry = Registry::builder().tls().start();
    let name = registry.push("app", "latest", &built());
    let node = Node::new().await;
    let error = node.images.pull(&name, None).await.unwrap_err();
    let unknown =
        matches!(&error, PullError::RegistryUnavailable { reason, .. } if reason.contains("certificate"));
    assert!(unknown, "{error:?}");

    let host = registry.host();
    hosts_toml(node.dir.path(), &host, &format!("server = \"{}\"\nca = \"ca.crt\"\n", registry.url()));
    let folder = node.dir.path().join("certs.d").join(&host);
    std::fs::write(folder.join("ca.crt"), registry.certificate().unwrap()).unwrap();
    node.pull(&name).await;

    // Docker's older form: a folder with certificates only.
    std::fs::remove_file(folder.join("hosts.toml")).unwrap();
    node.pull(&name).await;

    std::fs::remove_dir_all(&folder).unwrap();
    hosts_toml(node.dir.path(), &host, &format!("server = \"{}\"\nskip_verify = true\n", registry.url()));
    node.pull(&name).await;
}
