//! `top`: pods and containers on one screen, with what they use now and what is being done to them.
//!
//! Rates come from two looks, as in `stats`. Keys: c, m, n sort; q ends.

mod screen;
mod terminal;

use std::io::IsTerminal as _;
use std::time::Duration;

use bowline_cri_proto::{admin, v1};
use tokio::io::AsyncReadExt as _;

use crate::args::{SortBy, TopArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::ops::under_way;
use crate::render::print;
use screen::screen;
use terminal::Terminal;

/// One look at the runtime.
pub(crate) struct Look {
    pub pods: Vec<v1::PodSandboxStats>,
    /// `None`: this runtime does not tell.
    pub operations: Option<Vec<admin::Operation>>,
}

/// What a key asks for.
enum Key {
    Sort(SortBy),
    Again,
    Quit,
}

pub(crate) async fn top(client: &Client, args: &TopArgs) -> Done {
    let pause = Duration::from_secs_f64(args.seconds);
    let mut sort = args.sort;
    let mut before = look(client).await?;
    if args.once || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        tokio::time::sleep(pause).await;
        let after = look(client).await?;
        print(&screen(&before, &after, sort, None))?;
        return Ok(0);
    }
    let terminal = Terminal::take().map_err(|error| Failure::io("take over the terminal", error))?;
    // One for all keys: a read that is given up goes on, and with it would go what it reads.
    let mut keys = tokio::io::stdin();
    let mut shown: Option<Look> = None;
    // The first screen soon, then at the pace that was asked for.
    let mut wait = pause.min(Duration::from_millis(500));
    loop {
        if let Some(after) = &shown {
            terminal.show(&screen(&before, after, sort, Some(terminal.size())))?;
        }
        tokio::select! {
            key = key(&mut keys) => match key? {
                Key::Sort(by) => {
                    sort = by;
                    continue;
                }
                Key::Again => continue,
                Key::Quit => return Ok(0),
            },
            () = tokio::time::sleep(wait) => {}
        }
        wait = pause;
        let now = look(client).await?;
        if let Some(last) = shown.replace(now) {
            before = last;
        }
    }
}

async fn look(client: &Client) -> Result<Look, Failure> {
    let request = client.request(v1::ListPodSandboxStatsRequest::default());
    let answer =
        client.runtime().list_pod_sandbox_stats(request).await.map_err(doing("read the statistics"))?;
    Ok(Look { pods: answer.into_inner().stats, operations: under_way(client).await.ok() })
}

/// The next key. A closed terminal ends the screen.
async fn key(keys: &mut tokio::io::Stdin) -> Result<Key, Failure> {
    let mut byte = [0u8; 1];
    let read = keys.read(&mut byte).await.map_err(|error| Failure::io("read keys", error))?;
    Ok(match (read, byte[0]) {
        // Ctrl-C and Ctrl-D are keys while the terminal is ours.
        (0, _) | (_, b'q' | 3 | 4) => Key::Quit,
        (_, b'c') => Key::Sort(SortBy::Cpu),
        (_, b'm') => Key::Sort(SortBy::Memory),
        (_, b'n') => Key::Sort(SortBy::Name),
        _ => Key::Again,
    })
}
