//! Command, environment and working directory.

use bowline_model::runtime_spec::EnvLine;

use crate::{ContainerInputs, Note, SpecError, clean_path};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program and arguments: `command` replaces the image's entrypoint and drops its command, `args` alone replace
/// the image's command.
pub(crate) fn args(inputs: &ContainerInputs<'_>) -> Result<Vec<String>, SpecError> {
    let (container, image) = (inputs.container, inputs.image);
    let mut argv =
        if container.command.is_empty() { image.entrypoint.clone() } else { container.command.clone() };
    if !container.args.is_empty() {
        argv.extend_from_slice(&container.args);
    } else if container.command.is_empty() {
        argv.extend_from_slice(&image.cmd);
    }
    if argv.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    match argv.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(SpecError::invalid("command", format!("{arg:?} contains a NUL byte"))),
        None => Ok(argv),
    }
}

/// The environment: the image's, then what the pod knows, then the container's. A name appears once; the last
/// value wins and stands where the first one stood.
pub(crate) fn env(inputs: &ContainerInputs<'_>, notes: &mut Vec<Note>) -> Result<Vec<EnvLine>, SpecError> {
    let mut env = Env::default();
    env.set(EnvLine::new("PATH", DEFAULT_PATH));
    if inputs.container.tty {
        env.set(EnvLine::new("TERM", b"xterm"));
    }
    for line in &inputs.image.env {
        let line = EnvLine::from(line.as_str());
        if line.value().is_none() || line.name().is_empty() || line.as_bytes().contains(&0) {
            notes.push(Note::new("image", format!("ENV {line:?} left out: it is not NAME=value")));
            continue;
        }
        env.set(line);
    }
    env.set(EnvLine::new("HOSTNAME", inputs.hostname.as_bytes()));
    for (index, (name, value)) in inputs.container.envs.iter().enumerate() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::invalid(
                format!("envs[{index}].key"),
                format!("{name:?} is no name of a variable: it is empty or contains '=' or a NUL byte"),
            ));
        }
        if value.contains(&0) {
            let reason = format!("the value of {name} contains a NUL byte, which no environment can hold");
            return Err(SpecError::invalid(format!("envs[{index}].value"), reason));
        }
        env.set(EnvLine::new(name, value));
    }
    if !env.0.iter().any(|line| line.name() == b"HOME") {
        env.set(EnvLine::new("HOME", inputs.user.home.as_bytes()));
    }
    Ok(env.0)
}

#[derive(Default)]
struct Env(Vec<EnvLine>);

impl Env {
    fn set(&mut self, line: EnvLine) {
        match self.0.iter_mut().find(|there| there.name() == line.name()) {
            Some(there) => *there = line,
            None => self.0.push(line),
        }
    }
}

/// The working directory: the container's, else the image's, else the root.
pub(crate) fn cwd(inputs: &ContainerInputs<'_>) -> Result<String, SpecError> {
    let asked = &inputs.container.working_dir;
    if !asked.is_empty() {
        return clean_path(asked)
            .ok_or_else(|| SpecError::invalid("working_dir", format!("{asked:?} is not an absolute path")));
    }
    // Images have relative ones ("app"); Docker reads them from the root.
    let rooted = format!("/{}", inputs.image.working_dir);
    clean_path(&rooted).ok_or_else(|| SpecError::invalid("image", "WORKDIR contains a NUL byte"))
}
