//! `image import` and `image export`, over the admin service.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use bowline_cri_proto::admin;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::args::{ImageArgs, ImageCommand};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::render::{print, print_line, say};

/// Bytes of an archive in one message.
const CHUNK: usize = 512 << 10;

pub(crate) async fn archive(client: &Client, args: ImageArgs) -> Done {
    match args.command {
        ImageCommand::Import { name, file } => import(client, name.unwrap_or_default(), &file).await,
        ImageCommand::Export { output, names } => export(client, names, &output).await,
    }
}

async fn import(client: &Client, name: String, path: &Path) -> Done {
    let source: Box<dyn AsyncRead + Send + Unpin> = if path == Path::new("-") {
        if std::io::stdin().is_terminal() {
            return Err(Failure::hint("no archive on stdin", "`bowline image import FILE`"));
        }
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(path).await;
        Box::new(file.map_err(|error| Failure::io(&format!("open {}", path.display()), error))?)
    };
    let (send, chunks) = mpsc::channel(4);
    let mut admin = client.admin();
    let call = admin.import(Request::new(ReceiverStream::new(chunks)));
    let mut call = std::pin::pin!(call);
    let feed = feed(source, name, send);
    // A runtime that refuses says why at once, while there is still something to read.
    let answer = tokio::select! {
        answer = &mut call => answer,
        fed = feed => {
            fed.map_err(|error| Failure::io(&format!("read {}", path.display()), error))?;
            call.await
        }
    };
    let answer = answer.map_err(|status| without_admin("import images", &status))?.into_inner();
    if answer.images.is_empty() {
        return Err(Failure::new("the archive holds no image"));
    }
    for image in answer.images {
        match image.names.is_empty() {
            true => print_line(&image.id)?,
            false => print(&image.names.iter().map(|name| format!("{name}\n")).collect::<String>())?,
        }
    }
    Ok(0)
}

/// Sends an archive piece by piece. An error of reading leaves the sender to be dropped with the call: half an
/// archive never looks like a whole one.
async fn feed(
    mut source: Box<dyn AsyncRead + Send + Unpin>,
    mut name: String,
    send: mpsc::Sender<admin::ImportRequest>,
) -> std::io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match source.read(&mut chunk[filled..]).await? {
                0 => break,
                len => filled += len,
            }
        }
        chunk.truncate(filled);
        if filled == 0 && name.is_empty() {
            return Ok(());
        }
        let message = admin::ImportRequest { chunk, name: std::mem::take(&mut name) };
        if send.send(message).await.is_err() || filled < CHUNK {
            return Ok(());
        }
    }
}

async fn export(client: &Client, names: Vec<String>, path: &Path) -> Done {
    let to_stdout = path == Path::new("-");
    // A pipe or a device is written as it is; a file appears once it is whole.
    let in_place = to_stdout || std::fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::hint(
            "an archive is nothing for a terminal",
            "`-o FILE`, or `| another-program`",
        ));
    }
    let count = names.len();
    let mut admin = client.admin();
    let answer = admin.export(Request::new(admin::ExportRequest { names })).await;
    let mut chunks = answer.map_err(|status| without_admin("export images", &status))?.into_inner();
    // The first piece before the file: a name that is unknown leaves none.
    let mut next = chunks.message().await.map_err(doing("export images"))?;
    let mut partial = path.as_os_str().to_owned();
    if !in_place {
        partial.push(".partial");
    }
    let written = |error| Failure::io(&format!("write {}", path.display()), error);
    let mut out: Box<dyn std::io::Write> = match to_stdout {
        true => Box::new(std::io::stdout().lock()),
        false => Box::new(std::fs::File::create(&partial).map_err(written)?),
    };
    let mut total = 0;
    let result = loop {
        let Some(piece) = next else { break out.flush().map_err(written) };
        total += piece.chunk.len() as u64;
        if let Err(error) = out.write_all(&piece.chunk) {
            break Err(written(error));
        }
        next = match chunks.message().await {
            Ok(more) => more,
            Err(status) => break Err(Failure::status("export images", &status)),
        };
    };
    drop(out);
    if !in_place {
        match &result {
            Ok(()) => std::fs::rename(&partial, path).map_err(written)?,
            Err(_) => drop(std::fs::remove_file(&partial)),
        }
    }
    result?;
    let what = if count == 1 { "image" } else { "images" };
    say(&format!("wrote {count} {what}, {}", crate::render::size(total)));
    Ok(0)
}

/// Where there is no admin service, the runtime is another one.
fn without_admin(what: &str, status: &tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unimplemented => Failure::hint(
            format!(
                "could not {what}: this runtime has no admin service: it is not Bowline, or an older one"
            ),
            "the runtime's own tool (ctr for containerd, podman or skopeo for CRI-O), or another --endpoint",
        ),
        _ => Failure::status(what, status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(bytes: Vec<u8>, name: &str) -> Vec<admin::ImportRequest> {
        let (send, mut receive) = mpsc::channel(16);
        feed(Box::new(std::io::Cursor::new(bytes)), name.to_owned(), send).await.unwrap();
        let mut all = Vec::new();
        while let Some(piece) = receive.recv().await {
            all.push(piece);
        }
        all
    }

    #[tokio::test]
    async fn archives_go_in_pieces() {
        let all = pieces(vec![7; CHUNK + 3], "web:1").await;
        assert_eq!(all.iter().map(|piece| piece.chunk.len()).collect::<Vec<_>>(), [CHUNK, 3]);
        assert_eq!(all.iter().map(|piece| piece.name.as_str()).collect::<Vec<_>>(), ["web:1", ""]);
        assert_eq!(pieces(vec![7; CHUNK], "").await.len(), 1);
        assert!(pieces(Vec::new(), "").await.is_empty());
    }
}
