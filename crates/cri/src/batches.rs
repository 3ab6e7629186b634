//! Lists as streams: the items of the unary call, each once, in messages of a size that every client takes.

use futures_util::stream;
use prost::Message;
use tonic::codegen::BoxStream;

/// Bytes of a message beyond which the next one is begun. Far below what the kubelet takes (16 MiB), and enough that a
/// list of a full node is a handful of messages.
const ENOUGH: usize = 1 << 20;

/// Turns items into messages while the reader takes them. Nothing to send is an end without a message.
pub(crate) fn batches<T, M>(
    items: impl Iterator<Item = T> + Send + 'static,
    wrap: fn(Vec<T>) -> M,
) -> BoxStream<M>
where
    T: Message + 'static,
    M: Send + 'static,
{
    Box::pin(stream::iter(Batches(items).map(move |batch| Ok(wrap(batch)))))
}

struct Batches<I>(I);

impl<T: Message, I: Iterator<Item = T>> Iterator for Batches<I> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < ENOUGH {
            let Some(item) = self.0.next() else { break };
            bytes += item.encoded_len();
            batch.push(item);
        }
        (!batch.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use bowline_cri_proto::v1;

    use super::*;

    #[test]
    fn every_item_comes_once_and_messages_stay_small() {
        let item = |number: usize| v1::PodSandbox {
            id: format!("{number}{}", "x".repeat(60 << 10)),
            ..Default::default()
        };
        let batches: Vec<Vec<_>> = Batches((0..100).map(item)).collect();
        assert!(batches.len() > 3 && batches.iter().all(|batch| batch.len() <= 18), "{}", batches.len());
        let ids: Vec<String> = batches.into_iter().flatten().map(|pod| pod.id).collect();
        assert_eq!(ids, (0..100).map(|number| item(number).id).collect::<Vec<_>>());
        assert_eq!(Batches(std::iter::empty::<v1::PodSandbox>()).next(), None);
    }
}
