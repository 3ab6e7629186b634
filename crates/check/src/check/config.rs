//! What the container's config says about its process.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use tonic::Code;

use super::case::{Case, case, same};
use crate::container::variable;
use crate::images::PROGRAM;
use crate::node::{Node, refused};

pub(super) const CASES: &[Case] = &[
    case!("config/command-args", "K", command_args).quick(),
    case!("config/env", "K", env).quick(),
    case!("config/working-dir", "K", working_dir),
    case!("config/image-volume-dirs", "K", image_volume_dirs),
    case!("config/stdin-closed", "K", stdin_closed),
    case!("config/tty", "K", tty),
    case!("config/bare-image", "C", bare_image),
    case!("config/termination-message", "K", termination_message),
    case!("config/bad-paths", "S", bad_paths),
];

fn words(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

async fn command_args(node: Node) -> Result<()> {
    let image =
        node.run.workshop.image("words").entrypoint(&[PROGRAM, "args"]).cmd(&[";", "say", "own=1"]).build();
    let reference = node.pull_built("words", &image).await?;
    let pod = node.pod("words").run().await?;
    type Words = &'static [&'static str];
    let cases: [(&str, Words, Words, Words); 4] = [
        ("neither", &[], &[], &["args", ";", "say", "own=1"]),
        ("args", &[], &[";", "say", "b=2"], &["args", ";", "say", "b=2"]),
        ("command", &[PROGRAM, "args"], &[], &["args"]),
        ("both", &[PROGRAM, "args", ";"], &["say", "c=3"], &["args", ";", "say", "c=3"]),
    ];
    for (name, command, args, expected) in cases {
        let spec = pod.container(name).image(&reference).edit(|config| {
            (config.command, config.args) = (words(command), words(args));
        });
        let report = spec.report().await.with_context(|| format!("with {name}"))?;
        let got: Vec<_> = (1..).map_while(|index| report.find(&format!("args.{index}"))).collect();
        same!(got, expected, "the words with {name}");
    }
    let silent = node.pull_built("silent", &node.run.workshop.image("silent").build()).await?;
    pod.container("nothing")
        .image(&silent)
        .edit(|config| config.command.clear())
        .refused("no command anywhere")
        .await?;
    Ok(())
}

async fn env(node: Node) -> Result<()> {
    let image = node.run.workshop.image("env").env(&["A=image", "B=image", "C=a=b"]).build();
    let reference = node.pull_built("env", &image).await?;
    let pod = node.pod("env").run().await?;
    let spec = pod.container("main").image(&reference).cmd(&["env"]);
    let raw = v1::KeyValue { key: "RAW".to_owned(), value: b"\xff\xfe".to_vec() };
    let spec = spec
        .env("B", "ours")
        .env("D", "one\ntwo")
        .env("E", "x=y=z")
        .env("F", "early")
        .env("F", "late")
        .env("G", "");
    let plain = spec.edit(|config| config.envs.push(raw));
    let report = plain.report().await?;
    let expected = [
        ("A", "image"),
        ("B", "ours"),
        ("C", "a=b"),
        ("D", "one\\ntwo"),
        ("E", "x=y=z"),
        ("F", "late"),
        ("G", ""),
    ];
    for (name, value) in expected {
        report.is(&format!("env.{name}"), value)?;
    }
    report.is("env.RAW", "\\xff\\xfe")?;
    ensure!(report.get("env.PATH")?.contains("/bin"), "PATH is {}", report.get("env.PATH")?);
    Ok(())
}

async fn working_dir(node: Node) -> Result<()> {
    let image = node.run.workshop.image("folder").working_dir("/data").build();
    let reference = node.pull_built("folder", &image).await?;
    let pod = node.pod("folder").run().await?;
    for (name, asked, expected) in
        [("image", "", "/data"), ("ours", "/tmp", "/tmp"), ("made", "/no/such/folder", "/no/such/folder")]
    {
        let spec = pod.container(name).image(&reference).cmd(&["cwd"]);
        let report = spec.edit(|config| config.working_dir = asked.to_owned()).report().await?;
        report.is("cwd", expected)?;
    }
    Ok(())
}

async fn image_volume_dirs(node: Node) -> Result<()> {
    let image = node.run.workshop.image("volumes").volumes(&["/data", "/fresh/one"]).build();
    let reference = node.pull_built("volumes", &image).await?;
    let pod = node.pod("volumes").run().await?;
    let look = [
        "read",
        "/data/shipped",
        ";",
        "write",
        "/data/mine",
        "x",
        ";",
        "write",
        "/fresh/one/mine",
        "y",
        ";",
        "list",
        "/data",
    ];
    for name in ["first", "second"] {
        let spec = pod.container(name).image(&reference).cmd(&look);
        let report = spec.security(|security| security.readonly_rootfs = true).report().await?;
        report.is("read", "from the image")?;
        report.worked("write")?;
        report.is("list./data", "mine shipped")?;
    }
    let clean = pod.container("third").image(&reference).cmd(&["list", "/data"]).report().await?;
    clean.is("list./data", "shipped")
}

async fn stdin_closed(node: Node) -> Result<()> {
    let pod = node.pod("stdin").run().await?;
    pod.report("main", &["stdin"]).await?.is("stdin.bytes", "0")
}

async fn tty(node: Node) -> Result<()> {
    let pod = node.pod("tty").run().await?;
    let words = ["terminal", ";", "env", ";", "complain", "both=1"];
    let container = pod.container("main").cmd(&words).edit(|config| config.tty = true).start().await?;
    container.exited().await?;
    let report = container.output()?;
    report.is("terminal", "yyy")?;
    ensure!(!report.get("env.TERM")?.is_empty(), "TERM is empty");
    report.is("both", "1")?;
    let streams: Vec<_> = container.log()?.into_iter().filter(|record| record.stream != "stdout").collect();
    ensure!(streams.is_empty(), "not one merged stream: {streams:?}");
    Ok(())
}

async fn bare_image(node: Node) -> Result<()> {
    let workshop = &node.run.workshop;
    let layer = bowline_testkit::Layer::new().file("helper", 0o755, workshop.helper());
    let image = workshop.blank("bare").layer(layer).user("12345").entrypoint(&["/helper"]).build();
    let reference = node.pull_built("bare", &image).await?;
    let volume = node.folder("volume")?;
    let spec =
        node.pod("bare").run().await?.container("main").image(&reference).mount(&volume, "/deep/down/here");
    let report = spec
        .edit(|config| {
            config.command.clear();
            config.args = words(&[
                "ids",
                ";",
                "list",
                "/deep/down/here",
                ";",
                "stat",
                "/dev/null",
                ";",
                "stat",
                "/etc/hosts",
            ]);
        })
        .report()
        .await?;
    report.is("uids", "12345 12345 12345 12345")?;
    report.is("list./deep/down/here", "")?;
    report.get("stat./dev/null")?;
    Ok(())
}

async fn termination_message(node: Node) -> Result<()> {
    let folder = node.folder("message")?;
    let file = folder.join("log");
    fs::write(&file, "")?;
    let words = ["write", "/dev/termination-log", "last words", ";", "exit", "3"];
    let spec =
        node.pod("message").run().await?.container("main").cmd(&words).mount(&file, "/dev/termination-log");
    let container = spec.start().await?;
    container.exited().await?;
    same!(fs::read_to_string(&file)?, "last words", "the file when EXITED shows");
    Ok(())
}

async fn bad_paths(node: Node) -> Result<()> {
    let volume = node.folder("volume")?;
    let pod = node.pod("paths").run().await?;
    let relative = pod.container("relative").mount(&volume, "not/absolute");
    let dots = pod.container("dots").edit(|config| config.log_path = "../outside.log".to_owned());
    let mode = pod.container("mode").mount_as(&volume, "/data", |mount| mount.propagation = 77);
    for (field, spec) in [("container_path", relative), ("log_path", dots), ("propagation", mode)] {
        let status = refused(spec.try_create().await, &[Code::InvalidArgument], &format!("a bad {field}"))?;
        ensure!(status.message().contains(field), "the message does not name {field}: {}", status.message());
    }
    let odd = v1::ContainerConfig { envs: vec![variable("BAD=NAME", "x")], ..Default::default() };
    let named = pod.container("env").edit(|config| config.envs.extend(odd.envs));
    refused(named.try_create().await, &[Code::InvalidArgument], "a variable with `=` in its name")?;
    Ok(())
}
