//! Images: list, remove, inspect.

use bowline_cri_proto::v1;

use crate::args::{ImagesArgs, InspectArgs, Output, RmiArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing, each};
use crate::info::lift_info;
use crate::pods::print_inspected;
use crate::reflect::to_json;
use crate::render::{Table, print, print_line, print_value, say, short, size};
use crate::select::all_containers;

pub(crate) fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// All images, or those of a name.
async fn all_images(client: &Client, image: Option<&str>) -> Result<Vec<v1::Image>, Failure> {
    let filter = image.map(|image| v1::ImageFilter { image: Some(spec(image)) });
    let request = client.request(v1::ListImagesRequest { filter });
    Ok(client.images().list_images(request).await.map_err(doing("list images"))?.into_inner().images)
}

/// The image of a name, tag, digest or id, if the runtime has it.
pub(crate) async fn present(client: &Client, image: &str) -> Result<Option<v1::Image>, Failure> {
    let request = v1::ImageStatusRequest { image: Some(spec(image)), verbose: false };
    let answer = client.images().image_status(client.request(request)).await;
    Ok(answer.map_err(doing(format!("look for image {image}")))?.into_inner().image)
}

/// The image that is meant: as the runtime understands it, else by the start of its id.
pub(crate) async fn find(client: &Client, image: &str) -> Result<v1::Image, Failure> {
    if let Some(found) = present(client, image).await? {
        return Ok(found);
    }
    by_prefix(all_images(client, None).await?, image)
}

fn by_prefix(all: Vec<v1::Image>, wanted: &str) -> Result<v1::Image, Failure> {
    let prefix = wanted.trim_start_matches("sha256:");
    let is_id = prefix.len() >= 4 && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    let fits = |image: &v1::Image| is_id && image.id.trim_start_matches("sha256:").starts_with(prefix);
    let mut found = all.into_iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Failure::hint(
            format!("more than one image has an id that starts with `{wanted}`"),
            "more of the id",
        )),
        (None, _) => Err(Failure::hint(
            format!("there is no image `{wanted}`"),
            "`bowline images` to see what there is, `bowline pull` to get it",
        )),
    }
}

/// Whether a container is made of this image.
pub(crate) fn is_used_by(image: &v1::Image, container: &v1::Container) -> bool {
    let bare = |id: &str| id.trim_start_matches("sha256:").to_owned();
    let id = bare(&image.id);
    let spec = container.image.as_ref().map_or("", |spec| &spec.image);
    [container.image_id.as_str(), container.image_ref.as_str(), spec].iter().any(|name| {
        !name.is_empty()
            && (bare(name) == id
                || image.repo_digests.iter().any(|known| known == name)
                || image.repo_tags.iter().any(|known| known == name))
    })
}

pub(crate) async fn list(client: &Client, args: &ImagesArgs) -> Done {
    let images = all_images(client, args.image.as_deref()).await?;
    match args.list.output {
        _ if args.list.quiet => {
            print(&images.iter().map(|image| format!("{}\n", image.id)).collect::<String>())?;
        }
        Output::Table => print(&table(&images, args.digests, args.list.no_trunc))?,
        output => {
            let response = v1::ListImagesResponse { images };
            print_value(output, &to_json("ListImagesResponse", &response)?)?;
        }
    }
    Ok(0)
}

/// One row for each name of each image, in the order of the names.
fn table(images: &[v1::Image], digests: bool, whole: bool) -> String {
    let mut rows = Vec::new();
    for image in images {
        let id = short(&image.id, whole).to_owned();
        let digest = image.repo_digests.first().and_then(|name| name.split_once('@'));
        let shown = digest.map_or("<none>", |(_, digest)| short(digest, whole)).to_owned();
        let mut names: Vec<(String, String)> = image.repo_tags.iter().map(|name| split(name)).collect();
        if names.is_empty() {
            let repository = digest.map_or("<none>", |(repository, _)| repository);
            names.push((repository.to_owned(), "<none>".to_owned()));
        }
        let pinned = if image.pinned { "yes" } else { "" };
        for (repository, tag) in names {
            rows.push((repository, tag, shown.clone(), id.clone(), size(image.size), pinned));
        }
    }
    rows.sort();
    let mut heading = vec!["IMAGE", "TAG", "IMAGE ID", "SIZE", "PINNED"];
    if digests {
        heading.insert(2, "DIGEST");
    }
    let mut table = Table::new(&heading);
    for (repository, tag, digest, id, size, pinned) in rows {
        let mut cells = vec![repository, tag, id, size, pinned.to_owned()];
        if digests {
            cells.insert(2, digest);
        }
        table.row(cells);
    }
    table.text()
}

/// A colon before a slash is a port.
fn split(name: &str) -> (String, String) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository.to_owned(), tag.to_owned()),
        _ => (name.to_owned(), "<none>".to_owned()),
    }
}

pub(crate) async fn remove(client: &Client, args: &RmiArgs) -> Done {
    let mut names = args.images.clone();
    if args.all || args.prune {
        let containers = if args.prune { all_containers(client).await? } else { Vec::new() };
        let unused = |image: &v1::Image| !containers.iter().any(|container| is_used_by(image, container));
        let images = all_images(client, None).await?;
        names.extend(images.into_iter().filter(|image| !image.pinned && unused(image)).map(|image| image.id));
    }
    let names = &names;
    each(names, |at| async move {
        let name = &names[at];
        let image = find(client, name).await?;
        // A name takes that name away only if the runtime sees it so; an unknown one was the start of an id.
        let known = image.repo_tags.contains(name) || image.repo_digests.contains(name);
        let target = if known { name } else { &image.id };
        let request = client.request(v1::RemoveImageRequest { image: Some(spec(target)) });
        client.images().remove_image(request).await.map_err(doing(format!("remove image {name}")))?;
        for tag in &image.repo_tags {
            say(&format!("removed {tag}"));
        }
        print_line(&image.id)
    })
    .await
}

pub(crate) async fn inspect(client: &Client, args: &InspectArgs) -> Done {
    let mut found = Vec::new();
    for name in &args.names {
        let image = find(client, name).await?;
        let request = v1::ImageStatusRequest { image: Some(spec(&image.id)), verbose: !args.quiet };
        let answer = client.images().image_status(client.request(request)).await;
        found.push(answer.map_err(doing(format!("inspect image {name}")))?.into_inner());
    }
    if args.output == Output::Table {
        let images: Vec<v1::Image> = found.into_iter().filter_map(|answer| answer.image).collect();
        print(&table(&images, true, true))?;
        return Ok(0);
    }
    let values = found.iter().map(|answer| {
        let mut value = to_json("ImageStatusResponse", answer)?;
        lift_info(&mut value);
        // crictl calls it so.
        if let Some(image) = value.as_object_mut().and_then(|fields| fields.remove("image")) {
            value["status"] = image;
        }
        Ok(value)
    });
    print_inspected(args.output, values.collect::<Result<_, Failure>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> v1::Image {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let id = format!("sha256:{}", id.repeat(32));
        v1::Image {
            id,
            repo_tags: list(tags),
            repo_digests: list(digests),
            size: 4_261_550,
            ..Default::default()
        }
    }

    #[test]
    fn images_in_a_table() {
        let images = [
            image(
                "ab",
                &["example.org:5000/web:1", "example.org:5000/web:2"],
                &["example.org:5000/web@sha256:cd"],
            ),
            image("12", &[], &["docker.io/library/old@sha256:ef"]),
        ];
        let expected = "\
IMAGE                   TAG      DIGEST   IMAGE ID        SIZE     PINNED
docker.io/library/old   <none>   ef       1212121212121   4.26MB
example.org:5000/web    1        cd       ababababababa   4.26MB
example.org:5000/web    2        cd       ababababababa   4.26MB
";
        assert_eq!(table(&images, true, false), expected);
    }

    #[test]
    fn names_without_a_tag() {
        assert_eq!(split("example.org:5000/web"), ("example.org:5000/web".into(), "<none>".into()));
    }

    #[test]
    fn ids_by_their_start() {
        let all = || vec![image("ab", &[], &[]), image("cd", &[], &[])];
        assert!(by_prefix(all(), "abab").is_ok());
        assert!(by_prefix(all(), "sha256:cdcd").is_ok());
        assert!(by_prefix(all(), "web").is_err());
        assert!(by_prefix(all(), "").is_err());
    }

    #[test]
    fn an_image_is_used_under_any_of_its_names() {
        let web = image("ab", &["a/web:1"], &["a/web@sha256:cd"]);
        let of = |image_ref: &str| v1::Container { image_ref: image_ref.into(), ..Default::default() };
        assert!(is_used_by(&web, &of(&"ab".repeat(32))));
        assert!(is_used_by(&web, &of("a/web:1")));
        assert!(is_used_by(&web, &of("a/web@sha256:cd")));
        assert!(!is_used_by(&web, &of("")));
        assert!(!is_used_by(&web, &of("a/web:2")));
    }
}
