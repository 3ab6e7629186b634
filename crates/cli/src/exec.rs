//! `exec`: a command in a container, its output when it has ended.

use std::io::Write as _;
use std::time::Duration;

use bowline_cri_proto::v1;
use tonic::Request;

use crate::args::ExecArgs;
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::select;

pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Done {
    if args.interactive || args.tty {
        let text = "-i and -t need streaming, which this client does not have yet";
        return Err(Failure::hint(text, "without them, or `crictl exec -it`"));
    }
    let container = select::container(client, &args.container).await?;
    let message =
        v1::ExecSyncRequest { container_id: container.id, cmd: args.command, timeout: args.kill_after };
    // Without a limit a command may take for ever.
    let request = match u64::try_from(args.kill_after) {
        Ok(0) | Err(_) => Request::new(message),
        Ok(seconds) => client.request_within(message, Duration::from_secs(seconds)),
    };
    let answer = client.runtime().exec_sync(request).await;
    let answer = answer.map_err(doing(format!("run the command in {}", args.container)))?.into_inner();
    let mut out = std::io::stdout().lock();
    out.write_all(&answer.stdout)?;
    out.flush()?;
    let _ = std::io::stderr().write_all(&answer.stderr);
    Ok(exit_code(answer.exit_code))
}

/// A container's code as ours.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(255)
}
