//! nfnetlink messages of nf_tables. Names of constants as in linux/netfilter/nf_tables.h.

use std::io;

use rustix::io::Errno;

use crate::netlink::{Batch, Body, Socket, attributes};

/// `NFPROTO_INET`: one table for both families.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;
pub(super) const DELRULE: u16 = 8;
pub(super) const NEWSET: u16 = 9;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
pub(super) const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BATCH: [u16; 2] = [0x10, 0x11];

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_GEN_ID: u16 = 1;

/// The batch is one transaction between these two.
pub(super) fn begin(batch: &mut Batch) {
    batch.unanswered(BATCH[0], bracket);
}

pub(super) fn end(batch: &mut Batch) {
    batch.unanswered(BATCH[1], bracket);
}

fn bracket(m: &mut Body<'_>) {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    m.raw(&[0, 0, high, low]);
}

/// One message to nf_tables; the result is its index among the answers.
pub(super) fn nft(batch: &mut Batch, kind: u16, flags: u16, fill: impl FnOnce(&mut Body<'_>)) -> usize {
    batch.message(SUBSYSTEM << 8 | kind, flags, |m| {
        m.raw(&[INET, 0, 0, 0]);
        fill(m);
    })
}

pub(super) fn table(batch: &mut Batch, table: &str) {
    nft(batch, NEWTABLE, crate::netlink::CREATE, |m| m.string(NFTA_TABLE_NAME, table));
}

pub(super) fn delete_table(batch: &mut Batch, table: &str) -> usize {
    nft(batch, DELTABLE, 0, |m| m.string(NFTA_TABLE_NAME, table))
}

pub(super) fn delete_rule(batch: &mut Batch, table: &str, chain: &str, handle: u64) {
    nft(batch, DELRULE, 0, |m| {
        m.string(NFTA_RULE_TABLE, table);
        m.string(NFTA_RULE_CHAIN, chain);
        m.attr(NFTA_RULE_HANDLE, &handle.to_be_bytes());
    });
}

/// The number that each change of the ruleset, by whomever, raises.
pub(super) fn generation(socket: &mut Socket) -> io::Result<Option<u32>> {
    let mut batch = Batch::new();
    nft(&mut batch, GETGEN, 0, |_| {});
    let mut generation = None;
    let answers = socket.exchange(&mut batch, |_, payload| {
        generation = attributes(payload.get(4..).unwrap_or(&[]))
            .find(|(kind, _)| *kind == NFTA_GEN_ID)
            .and_then(|(_, value)| value.try_into().ok())
            .map(u32::from_be_bytes);
    })?;
    match answers.into_iter().flatten().next() {
        Some(refusal) => Err(refusal.into_io()),
        None => Ok(generation),
    }
}

/// A rule that exists.
pub(super) struct FoundRule {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) tag: String,
}

/// The rules of our table; none if there is no table.
pub(super) fn rules(socket: &mut Socket, table: &str) -> io::Result<Vec<FoundRule>> {
    let mut batch = Batch::new();
    nft(&mut batch, GETRULE, crate::netlink::DUMP, |m| m.string(NFTA_RULE_TABLE, table));
    let mut found = Vec::new();
    let answers = socket.exchange(&mut batch, |_, payload| {
        let mut rule = FoundRule { chain: String::new(), handle: 0, tag: String::new() };
        let mut of_table = String::new();
        for (kind, value) in attributes(payload.get(4..).unwrap_or(&[])) {
            match kind {
                NFTA_RULE_TABLE => of_table = text(value),
                NFTA_RULE_CHAIN => rule.chain = text(value),
                NFTA_RULE_HANDLE => rule.handle = value.try_into().map_or(0, u64::from_be_bytes),
                NFTA_RULE_USERDATA => rule.tag = comment_of(value),
                _ => {}
            }
        }
        if of_table == table {
            found.push(rule);
        }
    })?;
    match answers.into_iter().flatten().next() {
        Some(refusal) if refusal.errno != Errno::NOENT => Err(refusal.into_io()),
        _ => Ok(found),
    }
}

/// User data as `nft` shows it behind `comment`: kind 0, a length, a string that ends in NUL.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(200);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut out = vec![0, text.len() as u8 + 1];
    out.extend_from_slice(text);
    out.push(0);
    out
}

pub(super) fn comment_of(bytes: &[u8]) -> String {
    match bytes {
        [0, len, rest @ ..] => text(rest.get(..usize::from(*len)).unwrap_or(rest)),
        _ => String::new(),
    }
}

pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_read_back() {
        assert_eq!(comment_of(&comment("pod abc")), "pod abc");
        assert_eq!(comment_of(&comment(&"é".repeat(200))).len(), 200);
        assert_eq!(comment_of(&[9, 9]), "");
    }
}
