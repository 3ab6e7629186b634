//! Containers, as cases write them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use tonic::Status;

use crate::endpoint::ask;
use crate::host;
use crate::images::PROGRAM;
use crate::node::{Found, LABEL, image, until};
use crate::pod::Pod;

/// How long a container may take to get into a state.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A container being described.
pub(crate) struct CtrSpec {
    pub(crate) pod: Pod,
    /// What will be asked for; cases may change anything.
    pub(crate) config: v1::ContainerConfig,
    /// What the request repeats of the pod.
    pub(crate) sandbox: Option<v1::PodSandboxConfig>,
}

/// A container that was created.
#[derive(Clone)]
pub(crate) struct Ctr {
    pub(crate) pod: Pod,
    pub(crate) id: String,
    pub(crate) config: v1::ContainerConfig,
    marker: String,
}

impl CtrSpec {
    pub(crate) fn new(pod: Pod, name: &str) -> CtrSpec {
        let node = &pod.node;
        let linux = pod.config.linux.clone().unwrap_or_default();
        let namespaces = linux.security_context.unwrap_or_default().namespace_options;
        let security =
            v1::LinuxContainerSecurityContext { namespace_options: namespaces, ..Default::default() };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image(&node.run.image)),
            command: vec![PROGRAM.to_owned(), "pause".to_owned()],
            labels: [(LABEL.to_owned(), node.mark())].into(),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            envs: vec![variable("CHECK_CASE", &node.mark()), variable("CHECK_SELF", &node.unique(name))],
            ..Default::default()
        };
        CtrSpec { sandbox: Some((*pod.config).clone()), pod, config }
    }

    /// Operations of the helper program.
    pub(crate) fn cmd(mut self, words: &[&str]) -> CtrSpec {
        self.config.command =
            std::iter::once(PROGRAM).chain(words.iter().copied()).map(str::to_owned).collect();
        self
    }

    /// Any change to what is asked for.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut v1::ContainerConfig)) -> CtrSpec {
        change(&mut self.config);
        self
    }

    /// Any change to the security context.
    pub(crate) fn security(mut self, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> CtrSpec {
        let linux = self.config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
        self
    }

    /// Any change to the resources.
    pub(crate) fn resources(mut self, change: impl FnOnce(&mut v1::LinuxContainerResources)) -> CtrSpec {
        change(self.config.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    /// Another image.
    pub(crate) fn image(self, reference: &str) -> CtrSpec {
        self.edit(|config| config.image = Some(image(reference)))
    }

    /// As a user, by number.
    pub(crate) fn user(self, uid: i64) -> CtrSpec {
        self.security(|security| security.run_as_user = Some(v1::Int64Value { value: uid }))
    }

    /// A variable.
    pub(crate) fn env(self, name: &str, value: &str) -> CtrSpec {
        self.edit(|config| config.envs.push(variable(name, value)))
    }

    /// A mount of a host path.
    pub(crate) fn mount(self, host: &std::path::Path, inside: &str) -> CtrSpec {
        self.mount_as(host, inside, |_| {})
    }

    /// A mount with more said about it.
    pub(crate) fn mount_as(
        self,
        host: &std::path::Path,
        inside: &str,
        change: impl FnOnce(&mut v1::Mount),
    ) -> CtrSpec {
        let mut mount = v1::Mount {
            host_path: host.to_string_lossy().into_owned(),
            container_path: inside.to_owned(),
            ..Default::default()
        };
        change(&mut mount);
        self.edit(|config| config.mounts.push(mount))
    }

    /// Asks, and gives the bare answer.
    pub(crate) async fn try_create(&self) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: self.sandbox.clone(),
        };
        let answer = self.pod.node.runtime().create_container(ask(request)).await?.into_inner();
        self.pod.node.made_container(&answer.container_id);
        Ok(answer.container_id)
    }

    /// Creates it.
    pub(crate) async fn create(self) -> Result<Ctr> {
        let id = self.try_create().await.context("CreateContainer")?;
        let own = self.config.envs.iter().find(|item| item.key == "CHECK_SELF");
        let marker = own.map(|item| String::from_utf8_lossy(&item.value).into_owned()).unwrap_or_default();
        Ok(Ctr { pod: self.pod, id, config: self.config, marker: format!("CHECK_SELF={marker}") })
    }

    /// Creates and starts it.
    pub(crate) async fn start(self) -> Result<Ctr> {
        let container = self.create().await?;
        container.start().await.context("StartContainer")?;
        Ok(container)
    }

    /// Runs it to its end, which must be 0, and gives what it said.
    pub(crate) async fn report(self) -> Result<Report> {
        let container = self.start().await?;
        let status = container.exited().await?;
        let report = container.output()?;
        ensure!(
            status.exit_code == 0,
            "the container ended with {} ({}): {:?}",
            status.exit_code,
            status.reason,
            report.stderr
        );
        Ok(report)
    }

    /// Must fail at CreateContainer, or at the latest at StartContainer.
    pub(crate) async fn refused(self, what: &str) -> Result<Status> {
        let id = match self.try_create().await {
            Err(status) => return Ok(status),
            Ok(id) => id,
        };
        match self.pod.node.start(&id).await {
            Err(status) => Ok(status),
            Ok(()) => bail!("{what} was accepted"),
        }
    }
}

impl Ctr {
    pub(crate) async fn start(&self) -> Result<(), Status> {
        self.pod.node.start(&self.id).await
    }

    pub(crate) async fn stop(&self, grace: i64) -> Result<(), Status> {
        self.pod.node.stop(&self.id, grace).await
    }

    pub(crate) async fn remove(&self) -> Result<(), Status> {
        self.pod.node.remove(&self.id).await
    }

    pub(crate) async fn status(&self) -> Result<v1::ContainerStatus, Status> {
        self.pod.node.container_status(&self.id).await
    }

    /// Waits until it has ended.
    pub(crate) async fn exited(&self) -> Result<v1::ContainerStatus> {
        self.reaches(v1::ContainerState::ContainerExited, PATIENCE).await
    }

    /// Waits for a state.
    pub(crate) async fn reaches(
        &self,
        state: v1::ContainerState,
        limit: Duration,
    ) -> Result<v1::ContainerStatus> {
        until(format!("state {}", state.as_str_name()), limit, async || {
            let status = self.status().await?;
            Ok(if status.state == state as i32 {
                Found::Yes(status)
            } else {
                Found::Not(format!("{}", status.state))
            })
        })
        .await
    }

    /// Runs operations of the helper in it; they must end with 0.
    pub(crate) async fn exec(&self, words: &[&str]) -> Result<Report> {
        let cmd: Vec<&str> = std::iter::once(PROGRAM).chain(words.iter().copied()).collect();
        let answer = self.pod.node.exec_sync(&self.id, &cmd, 30).await.context("ExecSync")?;
        let report = Report::of(answer.stdout, answer.stderr);
        ensure!(answer.exit_code == 0, "{words:?} ended with {}: {:?}", answer.exit_code, report.stderr);
        Ok(report)
    }

    /// Where its log is on the host.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.pod.logs().join(&self.config.log_path)
    }

    /// The records of its log.
    pub(crate) fn log(&self) -> Result<Vec<Record>> {
        let path = self.log_path();
        let bytes = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        records(&bytes)
    }

    /// What its log says it wrote, so far.
    pub(crate) fn output(&self) -> Result<Report> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for record in self.log()? {
            let text = if record.stream == "stderr" { &mut stderr } else { &mut stdout };
            text.extend_from_slice(&record.content);
            if record.full {
                text.push(b'\n');
            }
        }
        Ok(Report::of(stdout, stderr))
    }

    /// Waits until its output holds a key, then gives the output.
    pub(crate) async fn says(&self, key: &str) -> Result<Report> {
        until(format!("`{key}` in the output"), PATIENCE, async || {
            let report = self.output().unwrap_or_default();
            Ok(match report.find(key) {
                Some(_) => Found::Yes(report),
                None => Found::Not(format!("{:?} {:?}", report.stdout(), report.stderr)),
            })
        })
        .await
    }

    /// The process as the host numbers it.
    ///
    /// It may take a moment after the start until it carries its own environment.
    pub(crate) async fn host_pid(&self) -> Result<u32> {
        until("the container's process on the host", PATIENCE, async || {
            let first = host::processes_with(&self.marker).first().copied();
            Ok(first.map_or_else(|| Found::Not("no process carries its mark".to_owned()), Found::Yes))
        })
        .await
    }

    /// The processes that carry its mark, children and execs too.
    pub(crate) fn host_pids(&self) -> Vec<u32> {
        host::processes_with(&self.marker)
    }

    /// The cgroup of its process.
    pub(crate) async fn cgroup(&self) -> Result<host::Cgroup> {
        host::Cgroup::of(self.host_pid().await?).context("the container's process has no cgroup")
    }
}

/// A variable of a container.
pub(crate) fn variable(name: &str, value: &str) -> v1::KeyValue {
    v1::KeyValue { key: name.to_owned(), value: value.as_bytes().to_vec() }
}

/// One record of a log file.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) time: String,
    pub(crate) stream: String,
    pub(crate) full: bool,
    pub(crate) content: Vec<u8>,
}

/// Parses a log; each record must be whole.
pub(crate) fn records(bytes: &[u8]) -> Result<Vec<Record>> {
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let mut found = Vec::new();
    for line in lines(bytes) {
        let shown = || text(&line[..line.len().min(120)]);
        let Some(line) = line.strip_suffix(b"\n") else { bail!("a record without its end: {:?}", shown()) };
        let Some([time, stream, tag, content]) = parts(line) else { bail!("not a record: {:?}", shown()) };
        ensure!(tag == b"F" || tag == b"P", "a record with the tag {:?}", text(tag));
        let content = content.to_vec();
        found.push(Record { time: text(time), stream: text(stream), full: tag == b"F", content });
    }
    Ok(found)
}

/// The lines of a log, each with its end. A log may be long, and this program is built to be built quickly: so the
/// bytes are looked at by a library that is built to be quick.
pub(crate) fn lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let (line, rest) = bytes.split_at(end);
        bytes = rest;
        (!line.is_empty()).then_some(line)
    })
}

/// Time, stream, tag and content of a record.
pub(crate) fn parts(line: &[u8]) -> Option<[&[u8]; 4]> {
    let split = |text| memchr::memchr(b' ', text).map(|at| (&text[..at], &text[at + 1..]));
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    let (tag, content) = split(rest)?;
    Some([time, stream, tag, content])
}

/// What the helper said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    lines: BTreeMap<String, String>,
    raw: Vec<u8>,
    pub(crate) stderr: String,
}

impl Report {
    pub(crate) fn of(stdout: Vec<u8>, stderr: Vec<u8>) -> Report {
        let text = String::from_utf8_lossy(&stdout).into_owned();
        let lines = text
            .lines()
            .filter_map(|line| line.trim_end_matches('\r').split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Report { lines, raw: stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }

    /// A value, if it is there.
    pub(crate) fn find(&self, key: &str) -> Option<&str> {
        self.lines.get(key).map(String::as_str)
    }

    /// A value that must be there.
    pub(crate) fn get(&self, key: &str) -> Result<&str> {
        self.find(key)
            .with_context(|| format!("`{key}` is not in the output {:?} {:?}", self.stdout(), self.stderr))
    }

    /// The value must be this.
    pub(crate) fn is(&self, key: &str, expected: &str) -> Result<()> {
        let value = self.get(key)?;
        ensure!(value == expected, "{key} is `{value}`, expected `{expected}`");
        Ok(())
    }

    /// The operation must have failed, with one of these (any if none is named).
    pub(crate) fn failed(&self, operation: &str, errors: &[&str]) -> Result<()> {
        let error =
            self.get(&format!("{operation}.error")).with_context(|| format!("{operation} succeeded"))?;
        ensure!(
            errors.is_empty() || errors.contains(&error),
            "{operation} failed with {error}, expected {errors:?}"
        );
        Ok(())
    }

    /// The operation must not have failed.
    pub(crate) fn worked(&self, operation: &str) -> Result<()> {
        match self.find(&format!("{operation}.error")) {
            Some(error) => bail!("{operation} failed with {error}"),
            None => Ok(()),
        }
    }

    /// Values of keys that start like this, in the order of the output's numbering.
    pub(crate) fn all(&self, start: &str) -> Vec<(&str, &str)> {
        let those = self.lines.iter().filter(|(key, _)| key.starts_with(start));
        those.map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    /// The output as it came.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.raw).into_owned()
    }
}
