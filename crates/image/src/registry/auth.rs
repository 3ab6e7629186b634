//! What a caller brings to prove who they are.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Credentials of one pull, in the forms that the kubelet passes. Empty strings mean absent.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User name, with `password`.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    /// The registry that these are for. If set and another, they are not used.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token for the registry itself.
    pub registry_token: String,
}

/// Secrets are never printed; which kinds there are is.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Auth");
        shown.field("server_address", &self.server_address);
        let kinds = [
            ("username", &self.username),
            ("password", &self.password),
            ("auth", &self.auth),
            ("identity_token", &self.identity_token),
            ("registry_token", &self.registry_token),
        ];
        for (name, value) in kinds {
            if !value.is_empty() {
                shown.field(name, &"(set)");
            }
        }
        shown.finish()
    }
}

impl Auth {
    /// Whether these may be shown to `host`, when the reference names `origin`. Without a server address they belong to the
    /// origin alone: a mirror is another party.
    pub(super) fn is_for(&self, host: &str, origin: &str) -> bool {
        if self.server_address.is_empty() {
            return same_registry(host, origin);
        }
        let address = self.server_address.as_str();
        let address =
            address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
        let named = address.split('/').next().unwrap_or_default();
        same_registry(host, named)
    }

    /// User and password, from whichever field has them.
    pub(super) fn basic(&self) -> Option<(String, String)> {
        if !self.username.is_empty() || !self.password.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok().filter(|bytes| !bytes.is_empty())?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        // Some old tools pad the password with zero bytes.
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// Docker Hub goes by three names.
fn same_registry(a: &str, b: &str) -> bool {
    fn plain(host: &str) -> &str {
        match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            other => other.strip_suffix(":443").unwrap_or(other),
        }
    }
    plain(a).eq_ignore_ascii_case(plain(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_their_registry_only() {
        let at = |server: &str| Auth { server_address: server.to_owned(), ..Auth::default() };
        assert!(at("").is_for("registry-1.docker.io", "docker.io"));
        assert!(at("https://index.docker.io/v1/").is_for("registry-1.docker.io", "docker.io"));
        assert!(!at("").is_for("mirror.example", "docker.io"));
        assert!(at("mirror.example").is_for("mirror.example", "docker.io"));
        assert!(!at("other.example").is_for("host.example", "host.example"));
        assert!(!at("host.example:5000").is_for("host.example", "host.example"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth = Auth { username: "me".into(), password: "hunter2".into(), ..Auth::default() };
        let shown = format!("{auth:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("\"me\""), "{shown}");
    }

    #[test]
    fn basic_credentials_come_from_either_field() {
        let auth = Auth { auth: STANDARD.encode("u:p:q"), ..Auth::default() };
        assert_eq!(auth.basic(), Some(("u".into(), "p:q".into())));
        assert_eq!(Auth::default().basic(), None);
    }
}
