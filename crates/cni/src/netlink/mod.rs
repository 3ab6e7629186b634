//! Netlink, as much of it as pods need: messages are put together in a batch, sent in one go, and their answers
//! read in one go. A batch is one system call however many links, addresses and routes it makes.

mod batch;
mod socket;

pub(crate) mod address;
pub(crate) mod link;

pub(crate) use batch::{APPEND, Batch, Body, CREATE, DUMP, EXCL, attributes};
pub(crate) use socket::{Socket, SocketPool};
