//! Lists whose entries have keys, and removal by a key that begins with `-`.

use std::collections::BTreeMap;

use bowline_nri_proto::v1alpha1::{
    CdiDevice, Field, KeyValue, LinuxDevice, LinuxNamespace, Mount, PosixRlimit,
};

use super::MergeError;
use super::owners::Claims;

/// An entry with a key.
pub(crate) trait Entry: Clone {
    fn key(&self) -> &str;
}

macro_rules! entries {
    ($($type:ty: $key:ident),* $(,)?) => {$(
        impl Entry for $type {
            fn key(&self) -> &str {
                &self.$key
            }
        }
    )*};
}
entries!(Mount: destination, KeyValue: key, LinuxDevice: path, LinuxNamespace: r#type, PosixRlimit: r#type, CdiDevice: name);

/// Takes `wanted` into the collected entries, and shows what came of it in `shown`. Whatever is taken away stays in the
/// collection as such, in front of what is added: it may be in the container from the start.
pub(crate) fn take<T: Entry>(
    field: Field,
    wanted: Vec<T>,
    collected: &mut Vec<T>,
    shown: &mut Vec<T>,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    let (gone, added): (Vec<T>, Vec<T>) = wanted.into_iter().partition(|entry| entry.key().starts_with('-'));
    for entry in gone {
        let key = entry.key().trim_start_matches('-').to_owned();
        claims.clear_entry(field, &key);
        collected.retain(|known| known.key() != key && known.key() != entry.key());
        shown.retain(|known| known.key() != key);
        collected.insert(0, entry);
    }
    for entry in added {
        claims.entry(field, entry.key())?;
        collected.retain(|known| known.key() != entry.key());
        shown.retain(|known| known.key() != entry.key());
        collected.push(entry.clone());
        shown.push(entry);
    }
    Ok(())
}

/// The same for maps.
pub(crate) fn take_map<V: Clone + Default>(
    field: Field,
    wanted: BTreeMap<String, V>,
    collected: &mut BTreeMap<String, V>,
    shown: &mut BTreeMap<String, V>,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    // `-` sorts before what a key begins with as a rule, but not before everything.
    let (gone, added): (BTreeMap<_, _>, BTreeMap<_, _>) =
        wanted.into_iter().partition(|(key, _)| key.starts_with('-'));
    for marked in gone.into_keys() {
        let key = marked.trim_start_matches('-');
        claims.clear_entry(field, key);
        collected.remove(key);
        shown.remove(key);
        collected.insert(marked, V::default());
    }
    for (key, value) in added {
        claims.entry(field, &key)?;
        collected.insert(key.clone(), value.clone());
        shown.insert(key, value);
    }
    Ok(())
}
