//! Import and export: archives as streams of pieces.

use bowline_cri_proto::admin::{ExportRequest, ExportResponse, ImportRequest, ImportResponse, ImportedImage};
use bowline_image::{ExportError, Images, ImportError};
use bowline_pods::chain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Bytes in flight between the wire and the store.
const PIPE: usize = 1 << 20;
/// Bytes of an archive in one message.
const PIECE: usize = 256 << 10;
/// How many images one call may name.
const MAX_NAMES: usize = 1000;

/// Takes in what arrives. A stream that breaks off imports nothing.
pub(super) async fn import(
    images: &Images,
    mut pieces: Streaming<ImportRequest>,
) -> Result<ImportResponse, Status> {
    let Some(first) = pieces.message().await? else {
        return Err(Status::invalid_argument("the archive is empty"));
    };
    let name = Some(first.name).filter(|name| !name.is_empty());
    let (mut writer, reader) = tokio::io::duplex(PIPE);
    let feed = feed(first.chunk, pieces, &mut writer);
    let import =
        async { images.import(reader, name.as_deref()).await.map_err(|error| import_status(&error)) };
    // `writer` outlives both: whatever ends early, the importer never takes half an archive for a whole one.
    let ((), imported) = tokio::try_join!(feed, import)?;
    let shown = imported
        .into_iter()
        .map(|image| ImportedImage { id: image.id.to_string(), names: image.names })
        .collect();
    Ok(ImportResponse { images: shown })
}

async fn feed(
    first: Vec<u8>,
    mut pieces: Streaming<ImportRequest>,
    writer: &mut DuplexStream,
) -> Result<(), Status> {
    let mut chunk = first;
    loop {
        // The importer has given up: it says why.
        if writer.write_all(&chunk).await.is_err() {
            return Ok(());
        }
        match pieces.message().await? {
            Some(piece) => chunk = piece.chunk,
            None => break,
        }
    }
    let _ = writer.shutdown().await;
    Ok(())
}

/// Sends an archive as it is made. The first piece is awaited here, so that an unknown name is the call's own error.
pub(super) async fn export(
    images: &Images,
    request: ExportRequest,
) -> Result<BoxStream<ExportResponse>, Status> {
    if request.names.is_empty() || request.names.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!("name 1 to {MAX_NAMES} images")));
    }
    let (mut writer, mut reader) = tokio::io::duplex(PIPE);
    let (send, receive) = mpsc::channel::<Result<ExportResponse, Status>>(4);
    let images = images.clone();
    // Ends with its reader: a client that goes away closes the channel, that the pipe, and that the export.
    let work = tokio::spawn(async move {
        let result = images.export(&request.names, &mut writer).await;
        let _ = writer.shutdown().await;
        result.map_err(|error| export_status(&error))
    });
    let mut first = vec![0; PIECE];
    let len = reader.read(&mut first).await.map_err(|error| Status::internal(error.to_string()))?;
    if len == 0 {
        return match work.await {
            Ok(Err(status)) => Err(status),
            _ => Err(Status::internal("the export ended without an archive")),
        };
    }
    first.truncate(len);
    tokio::spawn(async move {
        let mut chunk = first;
        while !chunk.is_empty() {
            if send.send(Ok(ExportResponse { chunk })).await.is_err() {
                return;
            }
            chunk = vec![0; PIECE];
            let len = reader.read(&mut chunk).await.unwrap_or(0);
            chunk.truncate(len);
        }
        // The end of the pipe alone may be that of a failure.
        let end =
            work.await.unwrap_or_else(|error| Err(Status::internal(format!("the export died: {error}"))));
        if let Err(status) = end {
            let _ = send.send(Err(status)).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receive)))
}

fn import_status(error: &ImportError) -> Status {
    Status::invalid_argument(chain(error))
}

fn export_status(error: &ExportError) -> Status {
    match error {
        ExportError::Io { .. } => Status::internal(chain(error)),
        _ => Status::not_found(chain(error)),
    }
}
