//! Which pod or container is meant: an id, the start of one, or a name, as long as it is one thing only.

use bowline_cri_proto::v1;

use crate::client::Client;
use crate::failure::{Failure, doing};
use crate::render::short;

/// Something that has an id and goes by names.
pub(crate) trait Named {
    /// What it is.
    const KIND: &'static str;
    /// Where to look for it.
    const LIST: &'static str;
    /// Its id.
    fn id(&self) -> &str;
    /// Whether `wanted` is one of its names.
    fn goes_by(&self, wanted: &str) -> bool;
    /// For an error that lists several.
    fn label(&self) -> String;
}

impl Named for v1::PodSandbox {
    const KIND: &'static str = "pod";
    const LIST: &'static str = "bowline pods";

    fn id(&self) -> &str {
        &self.id
    }

    fn goes_by(&self, wanted: &str) -> bool {
        let Some(metadata) = &self.metadata else { return false };
        match wanted.split_once('/') {
            Some((namespace, name)) => metadata.namespace == namespace && metadata.name == name,
            None => metadata.name == wanted,
        }
    }

    fn label(&self) -> String {
        let metadata = self.metadata.clone().unwrap_or_default();
        let (namespace, name, attempt) = (metadata.namespace, metadata.name, metadata.attempt);
        format!("{} {namespace}/{name}, attempt {attempt}", short(&self.id, false))
    }
}

impl Named for v1::Container {
    const KIND: &'static str = "container";
    const LIST: &'static str = "bowline ps -a";

    fn id(&self) -> &str {
        &self.id
    }

    fn goes_by(&self, wanted: &str) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.name == wanted)
    }

    fn label(&self) -> String {
        let metadata = self.metadata.clone().unwrap_or_default();
        let pod = short(&self.pod_sandbox_id, false);
        format!("{} {} of pod {pod}, attempt {}", short(&self.id, false), metadata.name, metadata.attempt)
    }
}

/// The one that is meant. An id is stronger than a name, a name than the start of an id.
pub(crate) fn pick<'a, T: Named>(all: &'a [T], wanted: &str) -> Result<&'a T, Failure> {
    if let Some(exact) = all.iter().find(|item| item.id() == wanted) {
        return Ok(exact);
    }
    let mut found: Vec<&T> = all.iter().filter(|item| item.goes_by(wanted)).collect();
    if found.is_empty() && !wanted.is_empty() {
        found = all.iter().filter(|item| item.id().starts_with(wanted)).collect();
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::hint(
            format!("there is no {} `{wanted}`", T::KIND),
            &format!("`{}` to see what there is", T::LIST),
        )),
        several => {
            let labels: Vec<String> = several.iter().map(|item| format!("\n    {}", item.label())).collect();
            Err(Failure::hint(
                format!("{} {}s go by `{wanted}`:{}", several.len(), T::KIND, labels.concat()),
                "an id, or the start of one",
            ))
        }
    }
}

/// All pods.
pub(crate) async fn all_pods(client: &Client) -> Result<Vec<v1::PodSandbox>, Failure> {
    let request = client.request(v1::ListPodSandboxRequest::default());
    Ok(client.runtime().list_pod_sandbox(request).await.map_err(doing("list pods"))?.into_inner().items)
}

/// All containers, in whatever state.
pub(crate) async fn all_containers(client: &Client) -> Result<Vec<v1::Container>, Failure> {
    let request = client.request(v1::ListContainersRequest::default());
    let answer = client.runtime().list_containers(request).await.map_err(doing("list containers"))?;
    Ok(answer.into_inner().containers)
}

/// The container that is meant.
pub(crate) async fn container(client: &Client, wanted: &str) -> Result<v1::Container, Failure> {
    pick(&all_containers(client).await?, wanted).cloned()
}

/// The pod that is meant.
pub(crate) async fn pod(client: &Client, wanted: &str) -> Result<v1::PodSandbox, Failure> {
    pick(&all_pods(client).await?, wanted).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, namespace: &str, name: &str) -> v1::PodSandbox {
        let metadata =
            v1::PodSandboxMetadata { name: name.into(), namespace: namespace.into(), ..Default::default() };
        v1::PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
    }

    fn check(wanted: &str, expected: Result<&str, &str>) {
        let all = [
            pod("aa11", "default", "web"),
            pod("aa22", "default", "db"),
            pod("bb33", "system", "db"),
            pod("cc44", "default", "aa"),
            pod("dd", "default", "x"),
            pod("dd55", "default", "y"),
        ];
        match (pick(&all, wanted), expected) {
            (Ok(found), Ok(id)) => assert_eq!(found.id, id, "{wanted}"),
            (Err(failure), Err(part)) => {
                let text = failure.text().unwrap();
                assert!(text.contains(part), "{wanted}: {text}");
            }
            (found, _) => panic!("{wanted}: {found:?}"),
        }
    }

    #[test]
    fn what_is_meant() {
        check("aa11", Ok("aa11"));
        check("aa1", Ok("aa11"));
        check("web", Ok("aa11"));
        check("aa", Ok("cc44"));
        check("dd", Ok("dd"));
        check("system/db", Ok("bb33"));
        check("default/web", Ok("aa11"));
        check("db", Err("2 pods go by `db`:\n    aa22 default/db, attempt 0\n    bb33"));
        check("d", Err("2 pods go by"));
        check("nothing", Err("there is no pod `nothing`\n  try: `bowline pods`"));
        check("", Err("there is no pod"));
    }
}
