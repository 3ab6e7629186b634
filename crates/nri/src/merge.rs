//! What several plugins want of one container, made into one. Pure: answers in, in the order of asking; out comes one
//! adjustment, one list of updates, and who owns what. Rules: docs/design/nri.md.

mod adjust;
mod entries;
mod owners;
mod resources;

use std::collections::BTreeMap;

use bowline_nri_proto::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse,
    LinuxContainerUpdate, LinuxResources, OwningPlugins,
};

use owners::Owners;

/// Why answers cannot be made into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Two want the same.
    #[error("plugins {first} and {second} both set {what} of container {container}")]
    Conflict {
        /// Whoever was asked first.
        first: String,
        /// The other one.
        second: String,
        /// The field, and the entry in it.
        what: String,
        /// Its id.
        container: String,
    },
    /// A container that is being made is adjusted, not updated.
    #[error("plugin {plugin} wants container {container} updated or evicted, which is only just being made")]
    NotYetMade {
        /// Who.
        plugin: String,
        /// Its id.
        container: String,
    },
}

/// A container that is being made, as its plugins want it.
#[derive(Debug, Clone)]
pub(crate) struct Creation {
    /// As those that were asked left it: what the next one is shown.
    pub(crate) container: Container,
    pub(crate) adjust: ContainerAdjustment,
    pub(crate) others: Others,
}

impl Creation {
    pub(crate) fn new(container: Container) -> Creation {
        Creation { container, adjust: ContainerAdjustment::default(), others: Others::default() }
    }

    /// Takes one plugin's answer in.
    pub(crate) fn take(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), MergeError> {
        let id = self.container.id.clone();
        if let Some(wanted) = answer.adjust {
            let mut owners = self.others.owners.of(&id, plugin);
            adjust::take(&mut self.container, &mut self.adjust, wanted, &mut owners)?;
        }
        let own = answer.update.iter().map(|update| &update.container_id);
        let mut own = own.chain(answer.evict.iter().map(|eviction| &eviction.container_id));
        if own.any(|other| *other == id) {
            return Err(MergeError::NotYetMade { plugin: plugin.to_owned(), container: id });
        }
        self.others.take(plugin, answer.update, answer.evict)
    }
}

/// A container whose limits are being changed, as its plugins want it.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    id: String,
    /// What the client asked for, as those that were asked left it.
    pub(crate) resources: LinuxResources,
    pub(crate) others: Others,
}

impl Update {
    pub(crate) fn new(id: &str, resources: LinuxResources) -> Update {
        Update { id: id.to_owned(), resources, others: Others::default() }
    }

    /// Takes one plugin's answer in.
    pub(crate) fn take(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), MergeError> {
        let (own, others): (Vec<_>, Vec<_>) =
            updates.into_iter().partition(|update| update.container_id == self.id);
        for update in own {
            let before = (self.resources.clone(), self.others.owners.clone());
            let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
            let mut owners = self.others.owners.of(&self.id, plugin);
            if let Err(conflict) = resources::take(&wanted, &mut [&mut self.resources], &mut owners) {
                if !update.ignore_failure {
                    return Err(conflict);
                }
                (self.resources, self.others.owners) = before;
            }
        }
        self.others.take(plugin, others, evictions)
    }
}

/// What plugins want of containers that they were not asked about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Others {
    updates: BTreeMap<String, ContainerUpdate>,
    pub(crate) evictions: Vec<ContainerEviction>,
    owners: Owners,
}

impl Others {
    pub(crate) fn take(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), MergeError> {
        for update in updates {
            let owners = self.owners.clone();
            let id = update.container_id.clone();
            let known = self.updates.get(&id).cloned();
            let mut merged = known.unwrap_or_else(|| ContainerUpdate {
                container_id: id.clone(),
                linux: Some(LinuxContainerUpdate { resources: Some(LinuxResources::default()) }),
                ignore_failure: true,
            });
            merged.ignore_failure &= update.ignore_failure;
            let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
            let into = merged.linux.get_or_insert_default().resources.get_or_insert_default();
            match resources::take(&wanted, &mut [into], &mut self.owners.of(&id, plugin)) {
                Ok(()) => {
                    self.updates.insert(id, merged);
                }
                Err(_) if update.ignore_failure => self.owners = owners,
                Err(conflict) => return Err(conflict),
            }
        }
        for eviction in evictions {
            if !self.evictions.iter().any(|known| known.container_id == eviction.container_id) {
                self.evictions.push(eviction);
            }
        }
        Ok(())
    }

    pub(crate) fn updates(&self) -> Vec<ContainerUpdate> {
        self.updates.values().cloned().collect()
    }

    pub(crate) fn owners(&self) -> &OwningPlugins {
        self.owners.message()
    }
}

#[cfg(test)]
mod tests;
