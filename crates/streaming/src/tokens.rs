//! Tokens: what the answer to a CRI call names, and one request over HTTP may use.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// How long a token waits for its request.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);
/// The most tokens that wait.
pub(crate) const MAX_TOKENS: usize = 1000;

/// So many sessions were asked for that nobody has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_TOKENS} streaming sessions were asked for and not begun yet; try again in a while")]
pub struct TooMany;

/// What waits for a request.
pub(crate) struct Tokens<T>(HashMap<String, (Instant, T)>);

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Tokens(HashMap::new())
    }
}

impl<T> Tokens<T> {
    /// Keeps something, and names it.
    pub(crate) fn put(&mut self, session: T, now: Instant) -> Result<String, TooMany> {
        if self.0.len() >= MAX_TOKENS {
            self.0.retain(|_, (until, _)| *until > now);
        }
        if self.0.len() >= MAX_TOKENS {
            return Err(TooMany);
        }
        let mut bytes = [0u8; 16];
        // The kernel's generator is ready long before any container runs.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
        self.0.insert(token.clone(), (now + LIFETIME, session));
        Ok(token)
    }

    /// Gives it away, once and in time.
    pub(crate) fn take(&mut self, token: &str, now: Instant) -> Option<T> {
        let (until, session) = self.0.remove(token)?;
        (until > now).then_some(session)
    }

    /// Forgets what is over.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.is_empty() {
            self.0.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let (one, two) = (tokens.put(1, now).unwrap(), tokens.put(2, now).unwrap());
        assert_ne!(one, two);
        assert!(one.len() >= 20 && one.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!(
            (tokens.take(&one, now), tokens.take(&one, now), tokens.take("", now)),
            (Some(1), None, None)
        );
        assert_eq!(tokens.take(&two, now + LIFETIME), None);
    }

    #[test]
    fn there_is_a_limit_which_time_lifts() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for number in 0..MAX_TOKENS {
            tokens.put(number, now).unwrap();
        }
        assert_eq!(tokens.put(0, now), Err(TooMany));
        let later = now + LIFETIME;
        assert!(tokens.put(0, later).is_ok());
        tokens.sweep(later);
        assert_eq!(tokens.0.len(), 1);
    }
}
