//! Runs a program against a daemon of its own: `with-daemon [--registry-config DIR | --images LAYOUT] -- PROGRAM ARGS`,
//! where `{endpoint}` in the arguments becomes the daemon's socket, and `{nri}` the path of its socket for NRI plugins.
//!
//! With `--images` a registry in this process has the images of an OCI layout, and stands for all registries there are.

use std::path::Path;
use std::process::{Command, ExitCode};

use bowline_testkit::Registry;
use bowline_tests::Daemon;

const HELP: &str = "with-daemon [--registry-config DIR | --images LAYOUT] -- PROGRAM ARGS";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(border) = args.iter().position(|arg| arg == "--") else {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    };
    let (own, rest) = (&args[..border], &args[border + 1..]);
    let setting = |folder: &str| format!("[images]\nregistry_config_dirs = [\"{folder}\"]\n");
    let registry = Registry::start();
    let hosts = tempfile::tempdir().expect("a folder");
    let more = match own {
        [] => String::new(),
        [flag, folder] if flag == "--registry-config" => setting(folder),
        [flag, layout] if flag == "--images" => {
            if let Err(error) = serve_all(&registry, layout.as_ref(), hosts.path()) {
                eprintln!("with-daemon: --images {layout}: {error}");
                return ExitCode::from(2);
            }
            setting(&hosts.path().display().to_string())
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    let Some((program, rest)) = rest.split_first() else { return ExitCode::from(2) };
    let mut daemon = Daemon::start_with(&more).without_limit();
    let (endpoint, nri) = (daemon.endpoint(), daemon.nri_socket().display().to_string());
    let filled = |arg: &String| arg.replace("{endpoint}", &endpoint).replace("{nri}", &nri);
    let status = Command::new(program).args(rest.iter().map(filled)).status();
    daemon.stop();
    match status {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code.clamp(0, 255) as u8)),
        Err(error) => {
            eprintln!("could not run {program}: {error}");
            ExitCode::from(2)
        }
    }
}

/// Loads the layout, and writes the tree of `hosts.toml` files that leads there from everywhere.
fn serve_all(registry: &Registry, layout: &Path, hosts: &Path) -> Result<(), String> {
    registry.load_layout(layout)?;
    let folder = hosts.join("_default");
    let text = format!("[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registry.url());
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join("hosts.toml"), text))
        .map_err(|error| format!("{}: {error}", folder.display()))
}
