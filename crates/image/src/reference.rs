//! Image references: what people write, and the one full form that we store.

use std::fmt;

use crate::digest::Digest;

/// Where a short name is looked for. Docker's rule, and what the kubelet's tests expect: `busybox` is `docker.io/library/busybox`.
const DEFAULT_DOMAIN: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A parsed, normalised reference: `domain/path:tag` or `domain/path@digest`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reference {
    domain: String,
    path: String,
    target: Target,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Target {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Parses what a user wrote. Missing parts are filled in (`docker.io`, `library/`, `:latest`). With both tag and digest the
    /// digest decides and the tag is dropped, as in containerd.
    pub fn parse(text: &str) -> Result<Reference, &'static str> {
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                (rest, Some(Digest::parse(digest).ok_or("the digest is not sha256:<64 hex>")?))
            }
        };
        // A colon after the last slash starts a tag; one before it belongs to a port.
        let tag_at = rest.rfind(':').filter(|&colon| !rest[colon..].contains('/'));
        let (name, tag) = match tag_at {
            None => (rest, None),
            Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (domain, path) = split_domain(name);
        check_domain(domain)?;
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_path(&path)?;
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err("the name is longer than 255 bytes");
        }
        if tag.is_none() && digest.is_none() && Digest::parse_hex(name).is_some() {
            return Err("64 hex digits are an image id, not a name");
        }
        let target = match digest {
            Some(digest) => Target::Digest(digest),
            None => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference { domain: domain.to_owned(), path, target })
    }

    /// The registry's name, `docker.io` or `host[:port]`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `domain/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The digest, if the reference names content rather than a tag.
    pub fn digest(&self) -> Option<Digest> {
        match &self.target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(_) => None,
        }
    }

    /// The tag, if there is no digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.target {
            Target::Tag(tag) => Some(tag),
            Target::Digest(_) => None,
        }
    }

    /// The same repository, at a digest.
    pub(crate) fn with_digest(&self, digest: Digest) -> Reference {
        Reference { target: Target::Digest(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry is not a host name with an optional port";
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(BAD)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            (None, port)
        }
        None => match domain.find(':') {
            Some(colon) => (Some(&domain[..colon]), &domain[colon..]),
            None => (Some(domain), ""),
        },
    };
    if let Some(host) = host {
        let label = |l: &str| {
            !l.is_empty()
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if !host.split('.').all(label) {
            return Err(BAD);
        }
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok() => Ok(()),
        _ => Err(BAD),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |text: &str| {
        let bytes = text.as_bytes();
        let ends = bytes.first().is_some_and(|b| alnum(*b)) && bytes.last().is_some_and(|b| alnum(*b));
        // Separators: one `.`, one or two `_`, any number of `-`, never mixed.
        let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends && separators
            .filter(|s| !s.is_empty())
            .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    if path.split('/').all(component) {
        Ok(())
    } else {
        Err("the repository has characters or separators that references do not allow (lower case only)")
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let bytes = tag.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = (1..=MAX_TAG).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
    if fits { Ok(()) } else { Err("the tag has characters that tags do not allow, or is empty or too long") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expect: &str) {
        let got = match Reference::parse(input) {
            Ok(reference) => reference.to_string(),
            Err(_) => "refused".to_owned(),
        };
        assert_eq!(got, expect, "{input}");
    }

    #[test]
    fn names_are_filled_in_as_docker_does() {
        let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check("busybox", "docker.io/library/busybox:latest");
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("foo/bar:1", "docker.io/foo/bar:1");
        check("localhost/a", "localhost/a:latest");
        check("localhost:5000/a/b:T.x-1", "localhost:5000/a/b:T.x-1");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("host.example/a__b-c.d", "host.example/a__b-c.d:latest");
        check(&format!("a@{d}"), &format!("docker.io/library/a@{d}"));
        check(&format!("a:tag@{d}"), &format!("docker.io/library/a@{d}"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            ":tag",
            "a:",
            "A",
            "h.x/A",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:b:c",
            "h.x:99999/a",
            "-h.x/a",
            "a@sha256:00",
            "h.x/../a",
            "a___b",
            "[::1/a",
            "h..x/a",
        ] {
            check(bad, "refused");
        }
        check(&Digest::of(b"").hex(), "refused");
    }
}
