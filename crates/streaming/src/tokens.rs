//! Tokens: what the answer to a CRI call names, and one request over HTTP may use.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tokio::time::Instant;

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
    pub(crate) fn put(&mut self, session: T) -> Result<String, TooMany> {
        let now = Instant::now();
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
    pub(crate) fn take(&mut self, token: &str) -> Option<T> {
        let (until, session) = self.0.remove(token)?;
        (until > Instant::now()).then_some(session)
    }

    /// Forgets what is over.
    pub(crate) fn sweep(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.is_empty() {
            self.0.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let mut tokens = Tokens::default();
        let (one, two) = (tokens.put(1).unwrap(), tokens.put(2).unwrap());
        assert_ne!(one, two);
        assert!(one.len() >= 20 && one.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!((tokens.take(&one), tokens.take(&one), tokens.take("")), (Some(1), None, None));
        tokio::time::advance(LIFETIME).await;
        assert_eq!(tokens.take(&two), None);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_limit_which_time_lifts() {
        let mut tokens = Tokens::default();
        for number in 0..MAX_TOKENS {
            tokens.put(number).unwrap();
        }
        assert_eq!(tokens.put(0), Err(TooMany));
        tokio::time::advance(LIFETIME).await;
        assert!(tokens.put(0).is_ok());
        tokens.sweep();
        assert_eq!(tokens.0.len(), 1);
    }
}
