//! Who set which field of which container.

use bowline_nri_proto::v1alpha1::{Field, FieldOwners, OwningPlugins};

use super::MergeError;

/// Owners by container and field. An owner that begins with `-` has taken the entry away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(OwningPlugins);

impl Owners {
    pub(crate) fn message(&self) -> &OwningPlugins {
        &self.0
    }

    /// What one plugin may do to the fields of a container.
    pub(crate) fn of<'a>(&'a mut self, container: &'a str, plugin: &'a str) -> Claims<'a> {
        Claims { container, plugin, fields: self.0.owners.entry(container.to_owned()).or_default() }
    }
}

/// What one plugin claims.
pub(crate) struct Claims<'a> {
    container: &'a str,
    plugin: &'a str,
    fields: &'a mut FieldOwners,
}

impl Claims<'_> {
    /// A whole field.
    pub(crate) fn field(&mut self, field: Field) -> Result<(), MergeError> {
        match self.fields.simple.get(&(field as i32)).filter(|owner| !self.is_mine(owner)) {
            Some(owner) => Err(self.conflict(owner, field.as_str_name().to_owned())),
            None => {
                self.fields.simple.insert(field as i32, self.plugin.to_owned());
                Ok(())
            }
        }
    }

    /// An entry of a field.
    pub(crate) fn entry(&mut self, field: Field, key: &str) -> Result<(), MergeError> {
        let entries = self.fields.compound.entry(field as i32).or_default();
        let owner = entries.owners.get(key).cloned();
        match owner.filter(|owner| !self.is_mine(owner)) {
            Some(owner) => Err(self.conflict(&owner, format!("{} {key}", field.as_str_name()))),
            None => {
                let entries = self.fields.compound.entry(field as i32).or_default();
                entries.owners.insert(key.to_owned(), self.plugin.to_owned());
                Ok(())
            }
        }
    }

    /// Takes a field away from whoever has it.
    pub(crate) fn clear(&mut self, field: Field) {
        self.fields.simple.insert(field as i32, format!("-{}", self.plugin));
    }

    /// Takes an entry away from whoever has it.
    pub(crate) fn clear_entry(&mut self, field: Field, key: &str) {
        let entries = self.fields.compound.entry(field as i32).or_default();
        entries.owners.insert(key.to_owned(), format!("-{}", self.plugin));
    }

    /// A field that everybody may add to.
    pub(crate) fn share(&mut self, field: Field) {
        let owners = self.fields.simple.entry(field as i32).or_default();
        if !owners.is_empty() {
            owners.push(',');
        }
        owners.push_str(self.plugin);
    }

    fn is_mine(&self, owner: &str) -> bool {
        owner.strip_prefix('-').unwrap_or(owner) == self.plugin
    }

    fn conflict(&self, owner: &str, what: String) -> MergeError {
        MergeError::Conflict {
            first: owner.strip_prefix('-').unwrap_or(owner).to_owned(),
            second: self.plugin.to_owned(),
            what,
            container: self.container.to_owned(),
        }
    }
}
