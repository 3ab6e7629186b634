//! Pulling, and showing how far it is.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use bowline_cri_proto::{admin, v1};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::Request;

use crate::args::{CredentialArgs, PullArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing, each};
use crate::render::{print_line, say, size};

/// Between two looks at the progress.
const LOOK: Duration = Duration::from_millis(120);
/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(3);

pub(crate) async fn command(client: &Client, args: &PullArgs) -> Done {
    let auth = &auth(&args.credentials)?;
    each(&args.images, |at| async move {
        let id = pull(client, &args.images[at], auth.clone(), args.quiet, None).await?;
        print_line(&id)
    })
    .await
}

/// What the flags or the environment say of credentials.
pub(crate) fn auth(args: &CredentialArgs) -> Result<Option<v1::AuthConfig>, Failure> {
    if let Some(auth) = &args.auth {
        return Ok(Some(v1::AuthConfig { auth: auth.clone(), ..Default::default() }));
    }
    let environment = std::env::var("BOWLINE_CREDS").ok().filter(|text| !text.is_empty());
    let Some(creds) = args.creds.clone().or(environment) else { return Ok(None) };
    match creds.split_once(':') {
        Some((user, password)) => Ok(Some(v1::AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        })),
        None => Err(Failure::hint("credentials without a password", "--creds USER:PASSWORD")),
    }
}

/// Pulls an image and gives its id. Takes as long as it takes: whoever wants it shorter presses Ctrl-C, and the
/// runtime stops with its last caller.
pub(crate) async fn pull(
    client: &Client,
    image: &str,
    auth: Option<v1::AuthConfig>,
    quiet: bool,
    sandbox_config: Option<v1::PodSandboxConfig>,
) -> Result<String, Failure> {
    let request = v1::PullImageRequest { image: Some(crate::images::spec(image)), auth, sandbox_config };
    let mut images = client.images();
    let pull = images.pull_image(Request::new(request));
    let answer = match quiet {
        true => pull.await,
        false => tokio::select! {
            answer = pull => answer,
            never = watch(client, image) => match never {},
        },
    };
    Ok(answer.map_err(doing(format!("pull {image}")))?.into_inner().image_ref)
}

/// Shows the progress until it is dropped.
async fn watch(client: &Client, image: &str) -> std::convert::Infallible {
    let mut screen = Screen::new(image);
    let mut admin = client.admin();
    loop {
        tokio::time::sleep(LOOK).await;
        let request = client.request(admin::PullProgressRequest {});
        match admin.pull_progress(request).await {
            Ok(answer) => {
                let pulls = answer.into_inner().pulls;
                if let Some(pull) = pulls.iter().find(|pull| is_of(pull, image)) {
                    screen.show(pull);
                }
            }
            // Another runtime: it pulls, and says nothing until it is done.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Whether this pull is of the image as it was asked for: the runtime shows names in full.
fn is_of(pull: &admin::Pull, image: &str) -> bool {
    let full = pull.reference.as_str();
    let named =
        |name: &str| full == name || full.strip_suffix(name).is_some_and(|front| front.ends_with('/'));
    named(image) || named(&format!("{image}:latest"))
}

/// A bar on a terminal, else lines now and then.
struct Screen {
    bar: Option<ProgressBar>,
    last: Option<(Instant, i32)>,
}

impl Screen {
    fn new(image: &str) -> Screen {
        if !std::io::stderr().is_terminal() {
            say(&format!("pulling {image}"));
            return Screen { bar: None, last: None };
        }
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(LOOK);
        bar.set_message(format!("{image}: asking the registry"));
        Screen { bar: Some(bar), last: None }
    }

    fn show(&mut self, pull: &admin::Pull) {
        let line = line(pull);
        let Some(bar) = &self.bar else {
            let due = self.last.is_none_or(|(at, stage)| stage != pull.stage || at.elapsed() >= LINE);
            if due && pull.stage() != admin::PullStage::Resolve {
                self.last = Some((Instant::now(), pull.stage));
                say(&line);
            }
            return;
        };
        if pull.bytes_total > 0 && bar.length() != Some(pull.bytes_total) {
            bar.set_length(pull.bytes_total);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {bytes_per_sec}")
            {
                bar.set_style(style);
            }
        }
        bar.set_position(pull.bytes_done.min(pull.bytes_total));
        bar.set_message(line);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(pull: &admin::Pull) -> String {
    let name = &pull.reference;
    match pull.stage() {
        admin::PullStage::Resolve => format!("{name}: asking the registry"),
        admin::PullStage::Layers => format!(
            "{name}: {} of {}, {} of {} layers",
            size(pull.bytes_done),
            size(pull.bytes_total),
            pull.layers_done,
            pull.layers_total
        ),
        admin::PullStage::Commit => format!("{name}: finishing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_in_words() {
        let pull = admin::Pull {
            reference: "docker.io/library/web:1".into(),
            stage: admin::PullStage::Layers as i32,
            bytes_done: 1_500_000,
            bytes_total: 64_000_000,
            layers_done: 1,
            layers_total: 5,
            age_ms: 7,
        };
        assert_eq!(line(&pull), "docker.io/library/web:1: 1.5MB of 64MB, 1 of 5 layers");
        assert!(is_of(&pull, "web:1") && is_of(&pull, "docker.io/library/web:1"));
        assert!(!is_of(&pull, "eb:1") && !is_of(&pull, "web"));
    }

    #[test]
    fn credentials() {
        let creds = |text: &str| auth(&CredentialArgs { creds: Some(text.into()), auth: None });
        let given = creds("me:a:b").unwrap().unwrap();
        assert_eq!((given.username.as_str(), given.password.as_str()), ("me", "a:b"));
        assert!(creds("me").is_err());
    }
}
