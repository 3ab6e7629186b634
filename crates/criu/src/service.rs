//! Talking to `criu swrk`, over the socket that it was given.
//!
//! Field numbers: images/rpc.proto of criu 3.17; they are never reused. A process serves one request and ends. It finds
//! folders by numbers of descriptors of whoever made the socket, through /proc.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::wire::{Malformed, Message, Writer};

/// `criu_req_type`.
mod kind {
    pub(super) const DUMP: u64 = 1;
    pub(super) const RESTORE: u64 = 2;
    pub(super) const NOTIFY: u64 = 6;
}

/// The longest answer: texts of errors are short.
const MAX_ANSWER: usize = 64 << 10;
/// criu's own limit for seizing all processes, in seconds; there it takes milliseconds.
const SEIZE_SECONDS: u64 = 60;
/// Deleted files that are kept with the images, in bytes each; beyond that criu refuses.
const GHOST_LIMIT: u64 = 64 << 20;
/// What criu writes to its log: everything but debugging.
const LOG_LEVEL: u64 = 4;

/// Why criu did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It says so; its log says why.
    #[error("criu failed{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        /// What it says, if anything.
        text: String,
    },
    /// It ended without an answer.
    #[error("criu ended without an answer")]
    Gone,
    /// It took too long.
    #[error("criu took longer than {} s", .0.as_secs())]
    Late(Duration),
    /// It said what no criu says.
    #[error("criu's answer makes no sense")]
    Nonsense,
    /// The socket failed.
    #[error("could not talk to criu")]
    Io(#[from] io::Error),
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Failure {
        Failure::Nonsense
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Failure {
        Failure::Io(errno.into())
    }
}

/// What is to be written of a process tree; it goes on afterwards.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Folder of the images. A descriptor of the process that made the socket.
    pub images: BorrowedFd<'a>,
    /// The first process, in criu's PID namespace.
    pub pid: i32,
    /// The cgroup that holds the tree and nothing else, as a path for criu. If it is frozen it is so again afterwards.
    pub freezer: String,
    /// Mount points that are to be bound from elsewhere when the tree is restored, paths inside the tree's root.
    pub mounts: Vec<String>,
    /// Other things of the host's that the tree holds on to, in criu's words: `file[mount:inode]`.
    pub external: Vec<String>,
}

/// What is to be brought back.
#[derive(Debug)]
pub struct Restore<'a> {
    /// Folder of the images, as for [`Dump::images`].
    pub images: BorrowedFd<'a>,
    /// Folder for criu's log.
    pub work: BorrowedFd<'a>,
    /// What becomes the root: a mount point, as a path for criu.
    pub root: String,
    /// Mount points inside the root, and what is bound there, as a path for criu.
    pub mounts: Vec<(String, String)>,
    /// The AppArmor profile of all processes that the images say to have one.
    pub apparmor: Option<String>,
    /// Descriptors of criu's that take the place of others: key (`pipe:[inode]`, `file[mount:inode]`) and number.
    pub descriptors: Vec<(String, i32)>,
}

/// What criu says on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// All processes are there, as criu's prisoners; the first one has this number. They have no credentials yet.
    Restored(i32),
    /// They are complete and are let go as soon as this is answered; a refusal does not stop that.
    Resuming,
    /// Anything else.
    Other,
}

/// A criu that waits for its request.
#[derive(Debug)]
pub struct Service(OwnedFd);

impl Service {
    /// Takes our end of its socket, which this process must have made.
    pub fn new(socket: OwnedFd) -> Service {
        Service(socket)
    }

    /// Writes a process tree's state to files.
    pub fn dump(self, wish: &Dump<'_>, patience: Duration) -> Result<(), Failure> {
        self.send(&dump_request(wish))?;
        let deadline = Instant::now() + patience;
        let answer = self.receive(deadline, patience)?;
        verdict(&Message::parse(&answer)?, kind::DUMP)
    }

    /// Brings a process tree back as a sibling of criu; returns the number of its first process. `hear` says whether to
    /// go on.
    pub fn restore(
        self,
        wish: &Restore<'_>,
        patience: Duration,
        mut hear: impl FnMut(Notice) -> bool,
    ) -> Result<i32, Failure> {
        self.send(&restore_request(wish))?;
        let deadline = Instant::now() + patience;
        loop {
            let answer = self.receive(deadline, patience)?;
            let answer = Message::parse(&answer)?;
            if answer.number(1)? != Some(kind::NOTIFY) {
                verdict(&answer, kind::RESTORE)?;
                let pid = answer.message(4)?.ok_or(Failure::Nonsense)?.number(1)?;
                return pid.and_then(|pid| i32::try_from(pid).ok()).ok_or(Failure::Nonsense);
            }
            let go_on = hear(notice(&answer)?);
            let mut reply = Writer::default();
            reply.number(1, kind::NOTIFY);
            reply.flag(3, go_on);
            self.send(&reply.finish())?;
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        match bowline_linux::message::send(self.0.as_fd(), bytes, &[]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Gone),
            other => Ok(other?),
        }
    }

    fn receive(&self, deadline: Instant, patience: Duration) -> Result<Vec<u8>, Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(Failure::Late(patience)),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut buffer = vec![0u8; MAX_ANSWER];
        match bowline_linux::message::receive(self.0.as_fd(), &mut buffer) {
            Ok((0, _)) => Err(Failure::Gone),
            Ok((len, _)) => {
                buffer.truncate(len);
                Ok(buffer)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Failure::Gone),
            Err(error) => Err(error.into()),
        }
    }
}

fn verdict(answer: &Message<'_>, asked: u64) -> Result<(), Failure> {
    let text = answer.text(9).unwrap_or_default().unwrap_or_default().trim().to_owned();
    match (answer.number(1)?, answer.number(2)?) {
        (Some(kind), Some(1)) if kind == asked => Ok(()),
        (_, Some(0)) => Err(Failure::Refused { text }),
        _ => Err(Failure::Nonsense),
    }
}

fn notice(answer: &Message<'_>) -> Result<Notice, Failure> {
    let said = answer.message(5)?.ok_or(Failure::Nonsense)?;
    let pid = || said.number(2).ok().flatten().and_then(|pid| i32::try_from(pid).ok());
    Ok(match said.text(1)? {
        Some("post-restore") => Notice::Restored(pid().ok_or(Failure::Nonsense)?),
        Some("pre-resume") => Notice::Resuming,
        _ => Notice::Other,
    })
}

/// A number that may be negative, as protocol buffers have it.
fn signed(number: i32) -> u64 {
    i64::from(number) as u64
}

fn dump_request(wish: &Dump<'_>) -> Vec<u8> {
    request(kind::DUMP, |opts| {
        opts.number(1, signed(wish.images.as_raw_fd()));
        opts.number(2, signed(wish.pid));
        // leave_running
        opts.flag(3, true);
        opts.bytes(10, b"dump.log");
        opts.bytes(44, wish.freezer.as_bytes());
        for mount in &wish.mounts {
            ext_mount(opts, mount, mount);
        }
        for external in &wish.external {
            opts.bytes(37, external.as_bytes());
        }
        // Deleted files that are still linked elsewhere.
        opts.flag(18, true);
        opts.number(35, GHOST_LIMIT);
        opts.number(45, SEIZE_SECONDS);
    })
}

fn restore_request(wish: &Restore<'_>) -> Vec<u8> {
    request(kind::RESTORE, |opts| {
        opts.number(1, signed(wish.images.as_raw_fd()));
        opts.number(17, signed(wish.work.as_raw_fd()));
        opts.bytes(10, b"restore.log");
        // notify_scripts
        opts.flag(12, true);
        opts.bytes(13, wish.root.as_bytes());
        // rst_sibling
        opts.flag(26, true);
        for (place, source) in &wish.mounts {
            ext_mount(opts, place, source);
        }
        for (key, number) in &wish.descriptors {
            opts.message(27, |descriptor| {
                descriptor.bytes(1, key.as_bytes());
                descriptor.number(2, signed(*number));
            });
        }
        if let Some(profile) = &wish.apparmor {
            opts.bytes(53, format!("apparmor:{profile}").as_bytes());
        }
        // tcp_close: the other ends are gone, or talk to the container that was written.
        opts.flag(52, true);
    })
}

/// A request with the options that both kinds have.
fn request(kind: u64, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut request = Writer::default();
    request.number(1, kind);
    request.message(2, |opts| {
        // Sockets to somebody outside, connections, file locks.
        opts.flag(4, true);
        opts.flag(5, true);
        opts.flag(8, true);
        opts.number(9, LOG_LEVEL);
        // Volumes may get mounts from the host.
        opts.flag(30, true);
        // manage_cgroups_mode IGNORE: its processes are where criu is, and that is where they belong.
        opts.number(34, 0);
        // tcp_skip_in_flight: connections that nobody has accepted yet.
        opts.flag(46, true);
        write(opts);
    });
    request.finish()
}

fn ext_mount(opts: &mut Writer, key: &str, value: &str) {
    opts.message(23, |mount| {
        mount.bytes(1, key.as_bytes());
        mount.bytes(2, value.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A criu in name only: hears one request, says these answers, each after the reply to the one before.
    fn service(answers: Vec<Vec<u8>>) -> (Service, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let (ours, theirs) = bowline_linux::message::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for answer in answers {
                let mut buffer = vec![0u8; MAX_ANSWER];
                let (len, _) = bowline_linux::message::receive(theirs.as_fd(), &mut buffer).unwrap();
                heard.push(buffer[..len].to_vec());
                bowline_linux::message::send(theirs.as_fd(), &answer, &[]).unwrap();
            }
            heard
        });
        (Service::new(ours), thread)
    }

    fn answer(kind: u64, success: bool, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(1, kind);
        writer.flag(2, success);
        more(&mut writer);
        writer.finish()
    }

    fn notify(script: &str, pid: Option<u64>) -> Vec<u8> {
        answer(kind::NOTIFY, true, |writer| {
            writer.message(5, |notify| {
                notify.bytes(1, script.as_bytes());
                if let Some(pid) = pid {
                    notify.number(2, pid);
                }
            });
        })
    }

    fn patience() -> Duration {
        Duration::from_secs(10)
    }

    fn dump<'a>(images: BorrowedFd<'a>) -> Dump<'a> {
        let mounts = vec!["/dev".to_owned(), "/etc/hosts".to_owned()];
        Dump { images, pid: 4711, freezer: "/sys/fs/cgroup/x".into(), mounts, external: Vec::new() }
    }

    #[test]
    fn a_dump_is_asked_for_in_criu_s_words() {
        let (service, criu) = service(vec![answer(kind::DUMP, true, |_| {})]);
        let folder = std::fs::File::open("/").unwrap();
        service.dump(&dump(folder.as_fd()), patience()).unwrap();
        let heard = criu.join().unwrap();
        let request = Message::parse(&heard[0]).unwrap();
        assert_eq!(request.number(1), Ok(Some(kind::DUMP)));
        let opts = request.message(2).unwrap().unwrap();
        assert_eq!(opts.number(1), Ok(Some(folder.as_raw_fd() as u64)));
        assert_eq!((opts.number(2), opts.number(3)), (Ok(Some(4711)), Ok(Some(1))), "it goes on running");
        assert_eq!(opts.messages(23).unwrap()[1].text(1), Ok(Some("/etc/hosts")));
        assert_eq!(opts.text(44), Ok(Some("/sys/fs/cgroup/x")));
    }

    #[test]
    fn a_refusal_tells_what_criu_says() {
        let (service, _criu) =
            service(vec![answer(kind::DUMP, false, |writer| writer.bytes(9, b"no such task\n"))]);
        let folder = std::fs::File::open("/").unwrap();
        let error = service.dump(&dump(folder.as_fd()), patience()).unwrap_err();
        assert_eq!(error.to_string(), "criu failed: no such task");
    }

    #[test]
    fn a_criu_that_dies_or_sleeps_is_an_error() {
        let folder = std::fs::File::open("/").unwrap();
        let (ours, theirs) = bowline_linux::message::pair().unwrap();
        drop(theirs);
        let died = Service::new(ours).dump(&dump(folder.as_fd()), patience());
        assert!(matches!(died, Err(Failure::Gone)), "{died:?}");
        let (ours, _theirs) = bowline_linux::message::pair().unwrap();
        let slept = Service::new(ours).dump(&dump(folder.as_fd()), Duration::from_millis(1));
        assert!(matches!(slept, Err(Failure::Late(_))), "{slept:?}");
    }

    #[test]
    fn a_restore_is_heard_of_on_the_way() {
        let (service, criu) = service(vec![
            notify("setup-namespaces", Some(77)),
            notify("post-restore", Some(77)),
            notify("pre-resume", None),
            answer(kind::RESTORE, true, |writer| writer.message(4, |restored| restored.number(1, 77))),
        ]);
        let folder = std::fs::File::open("/").unwrap();
        let wish = Restore {
            images: folder.as_fd(),
            work: folder.as_fd(),
            root: "/r/root".into(),
            mounts: vec![("/dev".into(), "/r/0".into())],
            apparmor: Some("name".into()),
            descriptors: vec![("pipe:[5]".into(), 9)],
        };
        let mut heard = Vec::new();
        let pid = service.restore(&wish, patience(), |notice| {
            heard.push(notice);
            true
        });
        assert_eq!(pid.unwrap(), 77);
        assert_eq!(heard, [Notice::Other, Notice::Restored(77), Notice::Resuming]);
        let requests = criu.join().unwrap();
        let opts = Message::parse(&requests[0]).unwrap().message(2).unwrap().unwrap();
        assert_eq!(opts.number(26), Ok(Some(1)), "a sibling of criu is its parent's child");
        assert_eq!(opts.text(53), Ok(Some("apparmor:name")));
        let inherited = opts.messages(27).unwrap();
        assert_eq!((inherited[0].text(1), inherited[0].number(2)), (Ok(Some("pipe:[5]")), Ok(Some(9))));
        assert_eq!(Message::parse(&requests[1]).unwrap().number(3), Ok(Some(1)));
    }
}
