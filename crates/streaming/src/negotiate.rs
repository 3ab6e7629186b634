//! What client and server speak: from the headers of a request to a protocol, or a refusal.
//!
//! The client names protocols in its order of preference; the first that we have is agreed.

use hyper::header::{CONNECTION, HeaderMap, UPGRADE};

use crate::websocket::{Form, accept_key};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Exec and attach.
    Command,
    /// Port-forward.
    Ports,
}

/// A protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Streams of SPDY. `version` of the subprotocol: 1 to 4; of port-forward 1.
    Spdy { version: u8 },
    /// Channels in WebSocket messages.
    Channels { form: Form, version: u8 },
    /// SPDY in WebSocket messages.
    Tunnel,
}

/// What was agreed, and the headers that say so.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub wire: Wire,
    pub headers: Vec<(&'static str, String)>,
}

/// Why nothing was agreed: an HTTP status and a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub status: u16,
    pub text: String,
    pub headers: Vec<(&'static str, String)>,
}

const VERSION_HEADER: &str = "X-Stream-Protocol-Version";
const ACCEPTED_HEADER: &str = "X-Accepted-Stream-Protocol-Versions";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const COMMAND_SPDY: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const PORTS_SPDY: [&str; 1] = ["portforward.k8s.io"];
const COMMAND_WEBSOCKET: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const PORTS_WEBSOCKET: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// Agrees on a protocol.
pub(crate) fn negotiate(purpose: Purpose, headers: &HeaderMap) -> Result<Agreed, Refused> {
    let wanted = words(headers, UPGRADE.as_str());
    let upgrades =
        words(headers, CONNECTION.as_str()).iter().any(|word| word.eq_ignore_ascii_case("upgrade"));
    let wants = |name: &str| upgrades && wanted.iter().any(|word| word.eq_ignore_ascii_case(name));
    if wants("websocket") {
        websocket(purpose, headers)
    } else if wants("SPDY/3.1") {
        spdy(purpose, headers)
    } else {
        let text = "this address streams: ask for an upgrade to SPDY/3.1 or websocket";
        Err(Refused { status: 400, text: text.into(), headers: Vec::new() })
    }
}

fn spdy(purpose: Purpose, headers: &HeaderMap) -> Result<Agreed, Refused> {
    let offered = words(headers, VERSION_HEADER);
    let known: &[&str] = if purpose == Purpose::Command { &COMMAND_SPDY } else { &PORTS_SPDY };
    let agreed = offered.iter().find_map(|word| known.iter().find(|name| *name == word));
    let mut answer = vec![("Connection", "Upgrade".to_owned()), ("Upgrade", "SPDY/3.1".to_owned())];
    let version = match agreed {
        Some(name) => {
            answer.push((VERSION_HEADER, (*name).to_owned()));
            version(name)
        }
        // Clients older than the header.
        None if offered.is_empty() => 1,
        None => {
            let headers = known.iter().map(|name| (ACCEPTED_HEADER, (*name).to_owned())).collect();
            return Err(Refused { status: 403, text: none_of(&offered, known), headers });
        }
    };
    Ok(Agreed { wire: Wire::Spdy { version }, headers: answer })
}

fn websocket(purpose: Purpose, headers: &HeaderMap) -> Result<Agreed, Refused> {
    let refuse = |text: String| Refused { status: 400, text, headers: Vec::new() };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if text("sec-websocket-version") != Some("13") {
        let headers = vec![("Sec-WebSocket-Version", "13".to_owned())];
        return Err(Refused { status: 426, text: "Sec-WebSocket-Version must be 13".into(), headers });
    }
    let key = text("sec-websocket-key").filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| refuse("Sec-WebSocket-Key is missing".into()))?;
    let offered = words(headers, "sec-websocket-protocol");
    let known: &[&str] = if purpose == Purpose::Command { &COMMAND_WEBSOCKET } else { &PORTS_WEBSOCKET };
    let agreed = offered.iter().find_map(|word| known.iter().find(|name| *name == word));
    let mut answer = vec![
        ("Connection", "Upgrade".to_owned()),
        ("Upgrade", "websocket".to_owned()),
        ("Sec-WebSocket-Accept", accept_key(key)),
    ];
    let wire = match agreed {
        Some(name) => {
            answer.push(("Sec-WebSocket-Protocol", (*name).to_owned()));
            match *name {
                TUNNEL => Wire::Tunnel,
                name => {
                    let (base64, version) = (name.contains("base64."), version(name));
                    Wire::Channels {
                        form: Form { base64, close_signal: version >= 5, client: false },
                        version,
                    }
                }
            }
        }
        None if offered.is_empty() => Wire::Channels { form: Form::default(), version: 1 },
        None => return Err(refuse(none_of(&offered, known))),
    };
    Ok(Agreed { wire, headers: answer })
}

fn none_of(offered: &[String], known: &[&str]) -> String {
    format!("none of the offered protocols {offered:?} is known here; offer one of {known:?}")
}

/// `v4.channel.k8s.io` is 4; without a number 1.
fn version(name: &str) -> u8 {
    let number = name.strip_prefix('v').and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(1)
}

/// All words of all headers of a name.
fn words(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn ask(purpose: Purpose, pairs: &[(&str, &str)]) -> Result<Agreed, Refused> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        negotiate(purpose, &headers)
    }

    fn spdy(purpose: Purpose, offered: &[&str]) -> Result<Wire, u16> {
        let mut pairs = vec![("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        pairs.extend(offered.iter().map(|name| ("x-stream-protocol-version", *name)));
        ask(purpose, &pairs).map(|agreed| agreed.wire).map_err(|refused| refused.status)
    }

    fn websocket(purpose: Purpose, offered: &str) -> Result<Wire, u16> {
        let mut pairs = vec![
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        if !offered.is_empty() {
            pairs.push(("sec-websocket-protocol", offered));
        }
        ask(purpose, &pairs).map(|agreed| agreed.wire).map_err(|refused| refused.status)
    }

    #[test]
    fn spdy_takes_the_first_that_both_have() {
        let all = ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"];
        assert_eq!(spdy(Purpose::Command, &all), Ok(Wire::Spdy { version: 4 }));
        assert_eq!(spdy(Purpose::Command, &["v2.channel.k8s.io"]), Ok(Wire::Spdy { version: 2 }));
        assert_eq!(spdy(Purpose::Command, &["channel.k8s.io"]), Ok(Wire::Spdy { version: 1 }));
        assert_eq!(spdy(Purpose::Command, &[]), Ok(Wire::Spdy { version: 1 }));
        assert_eq!(spdy(Purpose::Command, &["v5.channel.k8s.io"]), Err(403));
        assert_eq!(spdy(Purpose::Ports, &["portforward.k8s.io"]), Ok(Wire::Spdy { version: 1 }));
        assert_eq!(spdy(Purpose::Ports, &["v4.channel.k8s.io"]), Err(403));
    }

    #[test]
    fn websocket_takes_the_first_that_both_have() {
        let channels = |version, base64, close_signal| {
            Ok(Wire::Channels { form: Form { base64, close_signal, client: false }, version })
        };
        assert_eq!(websocket(Purpose::Command, "v5.channel.k8s.io"), channels(5, false, true));
        assert_eq!(
            websocket(Purpose::Command, "v9.x, v4.base64.channel.k8s.io, v4.channel.k8s.io"),
            channels(4, true, false)
        );
        assert_eq!(websocket(Purpose::Command, ""), channels(1, false, false));
        assert_eq!(websocket(Purpose::Command, "chat"), Err(400));
        assert_eq!(websocket(Purpose::Ports, "SPDY/3.1+portforward.k8s.io"), Ok(Wire::Tunnel));
        assert_eq!(websocket(Purpose::Ports, "v4.channel.k8s.io"), channels(4, false, false));
        assert_eq!(websocket(Purpose::Ports, "v5.channel.k8s.io"), Err(400));
    }

    #[test]
    fn the_answer_to_the_key_is_that_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn requests_that_are_no_upgrade_are_refused() {
        assert_eq!(ask(Purpose::Command, &[]).unwrap_err().status, 400);
        assert_eq!(ask(Purpose::Command, &[("upgrade", "websocket")]).unwrap_err().status, 400);
        let old = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "8")];
        assert_eq!(ask(Purpose::Command, &old).unwrap_err().status, 426);
    }
}
