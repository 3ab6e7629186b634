//! Log files: what the kubelet and every log shipper read.

use std::fs;
use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use tonic::Code;

use super::case::{Case, case, same};
use crate::container::{Ctr, lines, parts, records};
use crate::endpoint::ask;
use crate::node::{Found, Node, refused, until};

pub(super) const CASES: &[Case] = &[
    case!("log/exists-at-start", "CK", exists_at_start).quick(),
    case!("log/format", "CK", format).quick(),
    case!("log/whole-records", "C", whole_records),
    case!("log/complete-at-exit", "CK", complete_at_exit).quick(),
    case!("log/long-line", "K", long_line),
    case!("log/reopen", "CK", reopen),
    case!("log/reopen-refused", "P", reopen_refused),
    case!("log/append", "K", append),
    case!("log/no-path", "P", no_path),
    case!("log/flood", "K", flood),
];

async fn reopen_log(node: &Node, id: &str) -> Result<(), tonic::Status> {
    let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
    node.runtime().reopen_container_log(ask(request)).await?;
    Ok(())
}

async fn exists_at_start(node: Node) -> Result<()> {
    let pod = node.pod("exists").run().await?;
    let container =
        pod.container("main").edit(|c| c.log_path = "made/when/missing/0.log".to_owned()).start().await?;
    let path = container.log_path();
    ensure!(path.is_file(), "{} is not there when StartContainer returns", path.display());
    same!(container.status().await?.log_path, path.to_string_lossy(), "status.log_path");
    Ok(())
}

async fn format(node: Node) -> Result<()> {
    let words = ["say", "first", ";", "complain", "second", ";", "say", "", ";", "say", "a  b "];
    let container = node.pod("format").run().await?.container("main").cmd(&words).start().await?;
    container.exited().await?;
    let log = container.log()?;
    // Two pipes have no order between them: what is in both when the runtime looks may come either way.
    let of = |stream: &str| -> Vec<_> {
        let records = log.iter().filter(|record| record.stream == stream);
        records.map(|record| (record.full, String::from_utf8_lossy(&record.content))).collect()
    };
    let line = |text: &'static str| (true, text.into());
    same!(of("stdout"), vec![line("first"), line(""), line("a  b ")], "records of stdout");
    same!(of("stderr"), vec![line("second")], "records of stderr");
    same!(log.len(), 4, "records");
    for record in &log {
        let time: jiff::Timestamp = record.time.parse().with_context(|| format!("time `{}`", record.time))?;
        ensure!((time.as_second() - jiff::Timestamp::now().as_second()).abs() < 120, "time {}", record.time);
        let digits = record
            .time
            .split('.')
            .nth(1)
            .map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
        ensure!(digits >= 1, "no fraction of a second in {}", record.time);
    }
    Ok(())
}

async fn whole_records(node: Node) -> Result<()> {
    let words = ["numbers", "out", "200000", "60"];
    let container = node.pod("whole").run().await?.container("main").cmd(&words).start().await?;
    let mut file = fs::File::open(container.log_path())?;
    let mut text = Vec::new();
    until("the end of the output", Duration::from_secs(60), async || {
        let exited = container.status().await?.state == v1::ContainerState::ContainerExited as i32;
        // Several looks for each question about the state: it is the reader that is tried here. The kernel shows a
        // write page by page, so a record may be half there for an instant; one that stays half was written so.
        for _ in 0..20 {
            let patience = Instant::now() + crate::patience::at_most(Duration::from_secs(1));
            file.read_to_end(&mut text)?;
            while !text.is_empty() && !text.ends_with(b"\n") {
                ensure!(Instant::now() < patience, "half a record stays at byte {}", text.len());
                file.read_to_end(&mut text)?;
            }
        }
        Ok(if exited { Found::Yes(()) } else { Found::Not(format!("{} bytes", text.len())) })
    })
    .await?;
    same!(records(&text)?.len(), 200_000, "records");
    Ok(())
}

async fn complete_at_exit(node: Node) -> Result<()> {
    let pod = node.pod("complete").run().await?;
    for round in 0..3 {
        let words = ["numbers", "out", "20000", "80", ";", "bytes", "out", "656e64"];
        let container = pod.container(&format!("c{round}")).cmd(&words).start().await?;
        container.exited().await?;
        let content: Vec<u8> = container.output()?.stdout().into_bytes();
        let expected = 20_000 * 80 + 3;
        let length = content.iter().rposition(|byte| *byte != b'\n').map_or(0, |at| at + 1);
        same!(length, expected, "bytes in the file when EXITED first shows");
        ensure!(content[..length].ends_with(b"end"), "the last line, without newline, is missing");
    }
    Ok(())
}

async fn long_line(node: Node) -> Result<()> {
    let words = ["pattern", "out", "100000", ";", "say", "", ";", "say", "next"];
    let container = node.pod("long").run().await?.container("main").cmd(&words).start().await?;
    container.exited().await?;
    let log = container.log()?;
    let end = log.iter().position(|record| record.full).context("no record tagged F")?;
    let joined: Vec<u8> = log[..=end].iter().flat_map(|record| record.content.clone()).collect();
    let expected: Vec<u8> = (b'a'..=b'z').cycle().take(100_000).collect();
    ensure!(joined == expected, "the parts joined are not the input ({} bytes)", joined.len());
    ensure!(
        log[..=end].iter().all(|record| record.content.len() <= 16 << 10),
        "a part is longer than 16 KiB"
    );
    same!(log[end + 1].content, b"next".to_vec(), "the next line");
    Ok(())
}

async fn reopen(node: Node) -> Result<()> {
    let container = node.pod("reopen").run().await?.container("main").cmd(&["count", "100"]).start().await?;
    let path = container.log_path();
    let mut kept = Vec::new();
    for round in 0..50 {
        let old = path.with_extension(format!("{round}"));
        fs::rename(&path, &old)?;
        reopen_log(&node, &container.id).await?;
        ensure!(path.is_file(), "no new file when the call returns");
        let size = fs::metadata(&old)?.len();
        kept.push((old, size));
    }
    let grown = fs::metadata(&path)?.len();
    until("more lines", Duration::from_secs(5), async || {
        let now = fs::metadata(&path)?.len();
        Ok(if now > grown { Found::Yes(()) } else { Found::Not(format!("{now} bytes")) })
    })
    .await?;
    container.stop(0).await?;
    let mut text = Vec::new();
    for (old, size) in kept {
        same!(fs::metadata(&old)?.len(), size, "size of a rotated file");
        text.extend(fs::read(&old)?);
    }
    text.extend(fs::read(&path)?);
    for (index, record) in records(&text)?.iter().enumerate() {
        let expected = format!("{index:08}");
        same!(String::from_utf8_lossy(&record.content), expected, "line {index} over all files");
    }
    Ok(())
}

async fn reopen_refused(node: Node) -> Result<()> {
    let container = node.pod("refused").run().await?.container("main").cmd(&["say", "x"]).start().await?;
    container.exited().await?;
    let path = container.log_path();
    fs::rename(&path, path.with_extension("old"))?;
    let answer = reopen_log(&node, &container.id).await;
    ensure!(answer.is_ok() == path.exists(), "answer {answer:?}, new file: {}", path.exists());
    refused(reopen_log(&node, &"9".repeat(64)).await, &[Code::NotFound], "reopen of an unknown id")?;
    Ok(())
}

async fn append(node: Node) -> Result<()> {
    let pod = node.pod("append").run().await?;
    let spec = pod.container("main").cmd(&["say", "new"]);
    let path = pod.logs().join(&spec.config.log_path);
    fs::create_dir_all(pod.logs())?;
    fs::write(&path, "2001-01-01T00:00:00.000000000Z stdout F old\n")?;
    let container = spec.start().await?;
    container.exited().await?;
    let lines: Vec<_> =
        container.log()?.into_iter().map(|r| String::from_utf8_lossy(&r.content).into_owned()).collect();
    same!(lines, vec!["old", "new"], "lines");
    Ok(())
}

async fn no_path(node: Node) -> Result<()> {
    let spec = node.pod("none").run().await?.container("main").cmd(&["numbers", "out", "40000", "100"]);
    let container = spec.edit(|config| config.log_path = String::new()).start().await?;
    same!(container.exited().await?.exit_code, 0, "exit code of a container that writes 4 MB to nowhere");
    Ok(())
}

async fn flood(node: Node) -> Result<()> {
    const LINES: usize = 1_048_576;
    let words = ["numbers", "out", "1048576", "100"];
    let container: Ctr = node.pod("flood").run().await?.container("main").cmd(&words).start().await?;
    let mut lists = 0u32;
    until("the end of the flood", Duration::from_secs(80), async || {
        node.list_containers(v1::ContainerFilter::default()).await?;
        let status = container.status().await?;
        let done = status.state == v1::ContainerState::ContainerExited as i32;
        lists += u32::from(!done);
        Ok(if done { Found::Yes(()) } else { Found::Not("still writing".to_owned()) })
    })
    .await?;
    // A list that waits for the log answers once, when all has been written.
    ensure!(lists >= 2, "{lists} lists were answered while 100 MB were written");
    let text = fs::read(container.log_path())?;
    let mut count = 0;
    for (index, line) in lines(&text).enumerate() {
        let number = parts(line).and_then(|[_, _, _, content]| content.get(..8));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        ensure!(number == Some(index), "line {index} is not where it should be");
        count += 1;
    }
    same!(count, LINES, "lines");
    Ok(())
}
