//! Who a container runs as: the client's wish, the image's USER, and the image's user database.
//!
//! The database comes from the image and is believed only for what it may say: names, numbers, groups, a home.
//! Lines that make no sense are skipped, as libc does; a number that does not fit is no entry (CVE-2024-40635: ids
//! that wrapped around to 0).

use bowline_model::spec::{ContainerSpec, GroupsPolicy};

/// The largest user database that is read, in bytes.
pub const MAX_DATABASE: usize = 4 << 20;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first, each once.
    pub groups: Vec<u32>,
    /// Home directory; `/` where none is known.
    pub home: String,
    /// Name; empty where none is known.
    pub name: String,
}

/// Why nobody can be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A group without a user.
    #[error("security_context.run_as_group: needs run_as_user or run_as_username beside it")]
    GroupWithoutUser,
    /// No such user.
    #[error("{field}: the image's /etc/passwd has no user {name:?}; use a number or a name that it has")]
    NoSuchUser {
        /// Where the name comes from.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// No such group.
    #[error("image USER: the image's /etc/group has no group {name:?}; use a number or a name that it has")]
    NoSuchGroup {
        /// The name.
        name: String,
    },
    /// Not an id.
    #[error("{field}: {value} is not an id: ids go from 0 to 4294967294")]
    BadId {
        /// Where the number comes from.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A database beyond [`MAX_DATABASE`].
    #[error("the image's {file} has {len} bytes, more than the {MAX_DATABASE} that are read")]
    TooLarge {
        /// Which file.
        file: &'static str,
        /// Its length.
        len: usize,
    },
}

/// Finds out who a container runs as. `run_as_user` counts before `run_as_username`, that before the image's USER
/// (`user[:group]`, names or numbers).
pub fn resolve_user(
    container: &ContainerSpec,
    image_user: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<ResolvedUser, UserError> {
    let passwd = limited("/etc/passwd", passwd)?;
    let group = limited("/etc/group", group)?;
    let security = &container.security;

    let who = if let Some(uid) = security.run_as_user {
        by_uid(check("security_context.run_as_user", uid)?, passwd)
    } else if !security.run_as_username.is_empty() {
        by_name("security_context.run_as_username", &security.run_as_username, passwd)?
    } else if security.run_as_group.is_some() {
        return Err(UserError::GroupWithoutUser);
    } else {
        image_default(image_user, passwd, group)?
    };

    let gid = match security.run_as_group {
        Some(gid) => check("security_context.run_as_group", gid)?,
        None => who.gid,
    };
    let mut groups = vec![gid];
    for gid in &security.supplemental_groups {
        groups.push(check("security_context.supplemental_groups", *gid)?);
    }
    if security.groups_policy == GroupsPolicy::Merge && !who.name.is_empty() {
        groups.extend(groups_of(group, &who.name));
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    Ok(ResolvedUser { uid: who.uid, gid, groups, home: who.home, name: who.name })
}

fn limited<'a>(file: &'static str, text: Option<&'a [u8]>) -> Result<&'a [u8], UserError> {
    match text.unwrap_or_default() {
        text if text.len() > MAX_DATABASE => Err(UserError::TooLarge { file, len: text.len() }),
        text => Ok(text),
    }
}

/// The last number means "unchanged" to setuid(2) and chown(2).
fn check(field: &'static str, id: u32) -> Result<u32, UserError> {
    if id == u32::MAX { Err(UserError::BadId { field, value: id.to_string() }) } else { Ok(id) }
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn by_uid(uid: u32, passwd: &[u8]) -> Entry {
    entries(passwd).find(|entry| entry.uid == uid).unwrap_or_else(|| Entry {
        name: String::new(),
        uid,
        gid: 0,
        home: "/".into(),
    })
}

/// A user by name; a number counts as a name first, as in Docker, then as an id that needs no entry.
fn by_name(field: &'static str, name: &str, passwd: &[u8]) -> Result<Entry, UserError> {
    if let Some(entry) = entries(passwd).find(|entry| entry.name == name) {
        return Ok(entry);
    }
    match number(field, name)? {
        Some(uid) => Ok(by_uid(uid, passwd)),
        None => Err(UserError::NoSuchUser { field, name: name.to_owned() }),
    }
}

fn image_default(image_user: &str, passwd: &[u8], group: &[u8]) -> Result<Entry, UserError> {
    let (user, group_name) = image_user.split_once(':').unwrap_or((image_user, ""));
    let mut who = if user.is_empty() { by_uid(0, passwd) } else { by_name("image USER", user, passwd)? };
    if !group_name.is_empty() {
        who.gid = match group_lines(group).find(|line| line.name == group_name) {
            Some(line) => line.gid,
            None => number("image USER", group_name)?
                .ok_or_else(|| UserError::NoSuchGroup { name: group_name.to_owned() })?,
        };
    }
    Ok(who)
}

/// A number that is an id; `None` for anything that is not all digits.
fn number(field: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) => check(field, id).map(Some),
        Err(_) => Err(UserError::BadId { field, value: text.to_owned() }),
    }
}

fn entries(passwd: &[u8]) -> impl Iterator<Item = Entry> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).filter(|home| home.starts_with('/') && !home.contains(char::is_control));
        Some(Entry { name: name.to_owned(), uid, gid, home: home.unwrap_or("/").to_owned() })
    })
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_lines(group: &[u8]) -> impl Iterator<Item = GroupLine<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(GroupLine { name, gid, members: fields.next().unwrap_or("") })
    })
}

fn groups_of<'a>(group: &'a [u8], user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |line| line.members.split(',').any(|member| member.trim() == user))
        .map(|line| line.gid)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}
