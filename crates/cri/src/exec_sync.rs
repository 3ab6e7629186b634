//! ExecSync.

use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use prost::Message as _;
use tonic::Status;

use crate::convert::{Refused, check, invalid};
use crate::{MAX_MESSAGE, codes, find};

/// Runs a command in a container to its end. A code other than 0 is a result, not an error.
pub(crate) async fn exec_sync(
    pods: &Pods,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse, Status> {
    let id = find::container_id(pods, &request.container_id)?;
    check_command(&request.cmd).map_err(|refused| codes::of_refused(&refused))?;
    let timeout = timeout(request.timeout).map_err(|refused| codes::of_refused(&refused))?;
    let output = pods.exec_sync(&id, request.cmd, timeout).await.map_err(|error| codes::of_pod(&error))?;
    let answer =
        v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code };
    Ok(fitting(answer, MAX_MESSAGE))
}

/// A command names a program and holds no NUL.
pub(crate) fn check_command(cmd: &[String]) -> Result<(), Refused> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(invalid("cmd", "must name a program"));
    }
    cmd.iter().try_for_each(|word| check::no_nul("cmd", word))
}

/// Zero: none.
fn timeout(seconds: i64) -> Result<Option<Duration>, Refused> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(invalid("timeout", format!("{seconds} seconds are negative"))),
    }
}

/// Cuts output so that the message fits: CRI caps the answer as a whole, and the kubelet would take a longer one for a
/// failed probe. The shorter of the two streams is kept whole where that is possible.
fn fitting(mut answer: v1::ExecSyncResponse, limit: usize) -> v1::ExecSyncResponse {
    let over = answer.encoded_len().saturating_sub(limit);
    if over > 0 {
        let room = (answer.stdout.len() + answer.stderr.len()).saturating_sub(over);
        let stderr = answer.stderr.len().min((room / 2).max(room.saturating_sub(answer.stdout.len())));
        answer.stderr.truncate(stderr);
        answer.stdout.truncate(room - stderr);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(timeout(0), Ok(None));
        assert_eq!(timeout(3), Ok(Some(Duration::from_secs(3))));
        assert!(timeout(-1).is_err());
    }

    #[test]
    fn a_command_names_a_program() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(check_command(&words(&["true", ""])).is_ok());
        for bad in [words(&[]), words(&[""]), words(&["a", "b\0"])] {
            assert!(check_command(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn output_is_cut_to_fit() {
        for (stdout, stderr) in [(10, 10), (1000, 0), (0, 1000), (1000, 1000), (1000, 3), (3, 1000)] {
            let answer =
                v1::ExecSyncResponse { stdout: vec![1; stdout], stderr: vec![2; stderr], exit_code: 1 };
            let whole = answer.encoded_len();
            let cut = fitting(answer, 1000);
            assert!(cut.encoded_len() <= 1000, "{stdout} {stderr}");
            assert!(cut.encoded_len() >= whole.min(990), "{stdout} {stderr}: no more than needed is cut");
            if stdout.min(stderr) < 400 {
                assert_eq!(
                    cut.stdout.len().min(cut.stderr.len()),
                    stdout.min(stderr),
                    "the shorter one is whole"
                );
            }
        }
    }
}
