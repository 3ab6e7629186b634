//! Which hosts serve a repository: hosts.toml trees as containerd documents them, else the registry itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::Need;
use super::auth::Auth;
use super::connect::{self, Client, Tls, Trust};
use super::token::Access;
use crate::error::PullError;
use crate::reference::Reference;

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HOSTS_TOML: u64 = 1 << 20;

/// One place to ask, with all that is needed to ask it.
pub(super) struct Endpoint {
    /// `https://host[:port]`, without a slash.
    pub(super) base: String,
    /// The path up to the repository, `/v2` as a rule.
    pub(super) prefix: String,
    /// Sent as `?ns=` where this is not the registry that the reference names.
    pub(super) namespace: Option<String>,
    pub(super) headers: HeaderMap,
    resolve: bool,
    content: bool,
    pub(super) client: Client,
    pub(super) access: Access,
}

impl Endpoint {
    pub(super) fn can(&self, need: Need) -> bool {
        match need {
            Need::Resolve => self.resolve,
            Need::Content => self.content,
        }
    }
}

/// The endpoints for a reference, in the order in which to try them; the registry itself comes last.
pub(super) fn endpoints(
    dirs: &[PathBuf],
    reference: &Reference,
    auth: Option<&Auth>,
    trust: &Trust,
) -> Result<Vec<Endpoint>, PullError> {
    let domain = reference.domain();
    let Some(folder) = find(dirs, domain) else {
        return Ok(vec![plain_endpoint(&origin(domain), domain, auth, trust)?]);
    };
    let path = folder.join("hosts.toml");
    if !path.exists() {
        // Docker's older form: a folder with certificates only.
        let settings = Settings { certificates: docker_certificates(&folder), ..Settings::default() };
        return Ok(vec![settings.endpoint(&origin(domain), domain, auth, trust)?]);
    }
    let bad = |reason: String| PullError::BadHostsToml { path: path.clone(), reason };
    let table = read(&path).map_err(bad)?;
    let mut found = Vec::new();
    if let Some(hosts) = table.get("host") {
        let hosts = hosts.as_table().ok_or_else(|| bad("`host` is no table".to_owned()))?;
        for (url, settings) in hosts {
            let settings = settings.as_table().ok_or_else(|| bad(format!("host \"{url}\" is no table")))?;
            let settings = Settings::read(settings, &folder, url).map_err(bad)?;
            found.push(settings.endpoint(url, domain, auth, trust)?);
        }
    }
    let server = match table.get("server") {
        None => origin(domain),
        Some(value) => value.as_str().ok_or_else(|| bad("`server` is no text".to_owned()))?.to_owned(),
    };
    // The top level of the file speaks of the server itself.
    let settings = Settings::read(&table, &folder, &server).map_err(bad)?;
    found.push(settings.endpoint(&server, domain, auth, trust)?);
    Ok(found)
}

/// The first folder that speaks of `domain`, as containerd looks: `host:port`, `host_port_`, `_default`.
fn find(dirs: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let underscored = domain.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let names = [Some(domain.to_owned()), underscored.map(|(host, port)| format!("{host}_{port}_"))];
    let specific =
        dirs.iter().find_map(|dir| names.iter().flatten().map(|name| dir.join(name)).find(|f| f.is_dir()));
    specific.or_else(|| dirs.iter().map(|dir| dir.join("_default")).find(|folder| folder.is_dir()))
}

fn read(path: &Path) -> Result<toml::Table, String> {
    let stat = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if stat.len() > MAX_HOSTS_TOML {
        return Err(format!("{} bytes, the limit is {MAX_HOSTS_TOML}", stat.len()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.parse::<toml::Table>().map_err(|error| error.to_string())
}

/// Where a registry lives if no file says otherwise. Without a scheme for loopback: TLS is tried first there, then plain HTTP.
fn origin(domain: &str) -> String {
    match domain {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        local if connect::is_loopback(local) => local.to_owned(),
        other => format!("https://{other}"),
    }
}

fn plain_endpoint(
    url: &str,
    domain: &str,
    auth: Option<&Auth>,
    trust: &Trust,
) -> Result<Endpoint, PullError> {
    Settings::default().endpoint(url, domain, auth, trust)
}

struct Settings {
    resolve: bool,
    content: bool,
    certificates: Vec<PathBuf>,
    client: Vec<(PathBuf, PathBuf)>,
    skip_verify: bool,
    headers: HeaderMap,
    override_path: bool,
    dial_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            resolve: true,
            content: true,
            certificates: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            headers: HeaderMap::new(),
            override_path: false,
            dial_timeout: DIAL_TIMEOUT,
        }
    }
}

impl Settings {
    /// Reads one host's table. Keys that we do not know are left alone: the file is shared with other runtimes.
    fn read(table: &toml::Table, folder: &Path, host: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let wrong = |key: &str, wanted: &str| format!("`{key}` of \"{host}\" must be {wanted}");
        if let Some(value) = table.get("capabilities") {
            let list = strings(value).ok_or_else(|| wrong("capabilities", "a list of texts"))?;
            settings.resolve = list.iter().any(|word| word == "resolve");
            settings.content = list.iter().any(|word| word == "pull");
        }
        if let Some(value) = table.get("ca") {
            let list = strings(value).ok_or_else(|| wrong("ca", "a path or a list of paths"))?;
            settings.certificates = list.iter().map(|path| folder.join(path)).collect();
        }
        if let Some(value) = table.get("client") {
            settings.client =
                pairs(value, folder).ok_or_else(|| wrong("client", "paths or pairs of paths"))?;
        }
        for (key, field) in
            [("skip_verify", &mut settings.skip_verify), ("override_path", &mut settings.override_path)]
        {
            if let Some(value) = table.get(key) {
                *field = value.as_bool().ok_or_else(|| wrong(key, "true or false"))?;
            }
        }
        if let Some(value) = table.get("dial_timeout") {
            let parsed = value.as_str().and_then(go_duration);
            settings.dial_timeout =
                parsed.ok_or_else(|| wrong("dial_timeout", "a duration such as \"3s\""))?;
        }
        if let Some(value) = table.get("header") {
            let headers = value.as_table().ok_or_else(|| wrong("header", "a table"))?;
            for (name, value) in headers {
                let name: HeaderName = name.parse().map_err(|_| wrong("header", "made of header names"))?;
                for text in
                    strings(value).ok_or_else(|| wrong("header", "made of texts or lists of texts"))?
                {
                    let value =
                        HeaderValue::from_str(&text).map_err(|_| wrong("header", "made of header values"))?;
                    settings.headers.append(name.clone(), value);
                }
            }
        }
        Ok(settings)
    }

    fn endpoint(
        &self,
        url: &str,
        domain: &str,
        auth: Option<&Auth>,
        trust: &Trust,
    ) -> Result<Endpoint, PullError> {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some((scheme, _)) => {
                let reason = format!("\"{url}\": `{scheme}` is neither http nor https");
                return Err(PullError::BadHostsToml { path: PathBuf::from("hosts.toml"), reason });
            }
            None => (None, url),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], rest[slash..].trim_end_matches('/')),
            None => (rest, ""),
        };
        // As containerd: `/v2` is added unless the path has it already or override_path says that it stands for itself.
        let prefix =
            if self.override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
        let tls =
            Tls { ca: self.certificates.clone(), client: self.client.clone(), skip_verify: self.skip_verify };
        // Without a scheme: loopback may be plain, all else is https.
        let guess = scheme.is_none() && connect::is_loopback(authority);
        let client = connect::client(trust, tls, self.dial_timeout, guess)?;
        let host_of_domain = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let foreign = !authority.eq_ignore_ascii_case(host_of_domain);
        let auth = auth.filter(|auth| auth.is_for(authority, domain)).cloned();
        Ok(Endpoint {
            base: format!("{}://{authority}", scheme.unwrap_or("https")),
            prefix,
            namespace: foreign.then(|| domain.to_owned()),
            headers: self.headers.clone(),
            resolve: self.resolve,
            content: self.content,
            client,
            access: Access::new(auth),
        })
    }
}

fn strings(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(one) => Some(vec![one.clone()]),
        toml::Value::Array(many) => many.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `client`: "cert-and-key.pem", ["a.pem", "b.pem"], or [["cert.pem", "key.pem"], ..].
fn pairs(value: &toml::Value, folder: &Path) -> Option<Vec<(PathBuf, PathBuf)>> {
    let both = |path: &str| (folder.join(path), folder.join(path));
    match value {
        toml::Value::String(one) => Some(vec![both(one)]),
        toml::Value::Array(many) => many
            .iter()
            .map(|item| match item {
                toml::Value::String(one) => Some(both(one)),
                toml::Value::Array(pair) => match pair.as_slice() {
                    [cert] => Some(both(cert.as_str()?)),
                    [cert, key] => match key.as_str()? {
                        "" => Some(both(cert.as_str()?)),
                        key => Some((folder.join(cert.as_str()?), folder.join(key))),
                    },
                    _ => None,
                },
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// Go's durations, as far as people write them in hosts.toml: "300ms", "3s", "1m30s".
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total)
}

fn docker_certificates(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|ext| ext == "crt")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(go_duration("0.5s"), Some(Duration::from_millis(500)));
        for bad in ["", "3", "s", "3 s", "-1s", "1e400h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
