//! Exec, Attach and PortForward: an address for the client to go to.

use bowline_cri_proto::v1;
use bowline_pods::{AttachCall, ExecCall, Pods};
use bowline_streaming::{Streaming, TooMany};
use tonic::Status;

use crate::convert::{Refused, invalid};
use crate::exec_sync::check_command;
use crate::{codes, find};

/// An address at which a command runs in a container.
pub(crate) fn exec(
    pods: &Pods,
    streaming: &Streaming,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, Status> {
    let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let id = find::container_id(pods, &container_id)?;
    let checked = check_streams(tty, [stdin, stdout, stderr]).and_then(|()| check_command(&cmd));
    checked.map_err(|refused| codes::of_refused(&refused))?;
    must_run(pods, &container_id)?;
    let call = ExecCall { command: cmd, terminal: tty, stdin, stdout, stderr };
    Ok(v1::ExecResponse { url: streaming.exec(id, call).map_err(full)? })
}

/// An address at which a container's own streams are.
pub(crate) fn attach(
    pods: &Pods,
    streaming: &Streaming,
    request: &v1::AttachRequest,
) -> Result<v1::AttachResponse, Status> {
    let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let id = find::container_id(pods, container_id)?;
    check_streams(*tty, [*stdin, *stdout, *stderr]).map_err(|refused| codes::of_refused(&refused))?;
    must_run(pods, container_id)?;
    let call = AttachCall { stdin: *stdin, stdout: *stdout, stderr: *stderr };
    Ok(v1::AttachResponse { url: streaming.attach(id, call, *tty).map_err(full)? })
}

/// An address at which ports of a pod are. The ports themselves come with the streams, as a rule.
pub(crate) fn port_forward(
    pods: &Pods,
    streaming: &Streaming,
    request: &v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Status> {
    let view = find::pod(pods, &request.pod_sandbox_id)?;
    let ports = ports(&request.port).map_err(|refused| codes::of_refused(&refused))?;
    if !view.ready {
        let text = format!("sandbox {} is not ready: nothing can be forwarded", view.id);
        return Err(Status::failed_precondition(text));
    }
    Ok(v1::PortForwardResponse { url: streaming.port_forward(view.id.clone(), ports).map_err(full)? })
}

fn check_streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), Refused> {
    if !(stdin || stdout || stderr) {
        return Err(invalid("stdin, stdout, stderr", "at least one of them must be true"));
    }
    if tty && stderr {
        return Err(invalid("stderr", "must be false with a tty, which has one stream for both outputs"));
    }
    Ok(())
}

fn ports(ports: &[i32]) -> Result<Vec<u16>, Refused> {
    let number = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
    let number = |port| number(port).ok_or_else(|| invalid("port", format!("{port} is no port: 1 to 65535")));
    ports.iter().map(number).collect()
}

/// Asked again when the session begins, which may be later.
fn must_run(pods: &Pods, id: &str) -> Result<(), Status> {
    let view = find::container(pods, id)?;
    match view.life.pid() {
        Some(_) => Ok(()),
        None => Err(Status::failed_precondition(format!("container {} is not running", view.id))),
    }
}

fn full(error: TooMany) -> Status {
    Status::resource_exhausted(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_stream_and_no_stderr_with_a_tty() {
        assert!(check_streams(false, [true, false, false]).is_ok());
        assert!(check_streams(true, [true, true, false]).is_ok());
        assert!(check_streams(false, [false, false, false]).is_err());
        assert!(check_streams(true, [true, true, true]).is_err());
    }

    #[test]
    fn ports_are_ports() {
        assert_eq!(ports(&[]), Ok(vec![]));
        assert_eq!(ports(&[1, 65535]), Ok(vec![1, 65535]));
        for bad in [0, -1, 65536] {
            assert!(ports(&[bad]).is_err());
        }
    }
}
