//! `exec` and `attach`: a command in a container, its output when it has ended or, with -i or -t, as it comes; and the
//! container's own process.

use std::io::Write as _;
use std::time::Duration;

use bowline_cri_proto::v1;
use tonic::Request;

use crate::args::{AttachArgs, ExecArgs};
use crate::client::Client;
use crate::failure::{Done, doing};
use crate::{select, stream};

pub(crate) async fn exec(client: &Client, args: ExecArgs) -> Done {
    if args.interactive || args.tty {
        return streamed(client, args).await;
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

/// With stdin or a terminal: everything as it comes.
async fn streamed(client: &Client, args: ExecArgs) -> Done {
    let ExecArgs { interactive: stdin, tty, stream: how, command: cmd, .. } = args;
    let container_id = select::container(client, &args.container).await?.id;
    let what = format!("run the command in {}", args.container);
    let ask = async || {
        let (container_id, cmd) = (container_id.clone(), cmd.clone());
        let message = v1::ExecRequest { container_id, cmd, tty, stdin, stdout: true, stderr: !tty };
        let answer = client.runtime().exec(client.request(message)).await;
        Ok(answer.map_err(doing(what.clone()))?.into_inner().url)
    };
    stream::session(ask, &what, &how, stdin, tty).await
}

/// A container's own process, from here on.
pub(crate) async fn attach(client: &Client, args: AttachArgs) -> Done {
    let AttachArgs { interactive: stdin, tty, stream: how, .. } = args;
    let container_id = select::container(client, &args.container).await?.id;
    let what = format!("attach to {}", args.container);
    let ask = async || {
        let container_id = container_id.clone();
        let message = v1::AttachRequest { container_id, tty, stdin, stdout: true, stderr: !tty };
        let answer = client.runtime().attach(client.request(message)).await;
        Ok(answer.map_err(doing(what.clone()))?.into_inner().url)
    };
    stream::session(ask, &what, &how, stdin, tty).await
}

/// A container's code as ours.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(255)
}
