//! Page sizes and page tokens, for every list of the API.
use crate::error::ApiError;
use crate::query::{Digest, PageToken, TokenSecret, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
use crate::store::{SettingStore, StoreError};

/// The setting that keeps the secret, so that tokens outlive a restart.
const SECRET_SETTING: &str = "page_token_secret";

/// Items of the page that was asked for: 0 means the default; above the maximum it is lowered to it.
///
/// # Errors
/// INVALID_ARGUMENT when negative.
pub fn size_of(page_size: i32) -> Result<usize, ApiError> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => {
            let message = format!("page_size is {page_size}; give 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}");
            Err(ApiError::invalid_argument(message))
        }
    }
}

/// Reads and writes `page_token`s. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    secret: TokenSecret,
}

/// Why there is no secret for tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("the secret of page tokens cannot be kept")]
    Store(#[from] StoreError),
    #[error("no random bytes for the secret of page tokens")]
    Random(#[source] getrandom::Error),
}

impl Tokens {
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret: TokenSecret::new(secret) }
    }

    /// With the installation's secret, which is made when there is none.
    pub async fn load_or_create(settings: &(impl SettingStore + ?Sized)) -> Result<Self, TokensError> {
        if let Some(secret) = settings.setting(SECRET_SETTING).await?.and_then(|kept| kept.try_into().ok()) {
            return Ok(Self::new(secret));
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(TokensError::Random)?;
        settings.set_setting(SECRET_SETTING, secret.to_vec()).await?;
        Ok(Self::new(secret))
    }

    /// `None` asks for the first page.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a token that this server did not make for this query.
    pub fn read(&self, token: &str, query: Digest) -> Result<Option<PageToken>, ApiError> {
        if token.is_empty() {
            return Ok(None);
        }
        let token = PageToken::decode(token, &self.secret, query);
        token.map(Some).map_err(|error| ApiError::invalid_argument(format!("page_token {error}")))
    }

    pub fn write(&self, token: &PageToken, query: Digest) -> String {
        token.encode(&self.secret, query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite;

    #[test]
    fn sizes_are_defaulted_clamped_or_refused() {
        assert_eq!(size_of(0).expect("default"), DEFAULT_PAGE_SIZE);
        assert_eq!(size_of(1_000_000).expect("clamped"), MAX_PAGE_SIZE);
        assert!(size_of(-1).expect_err("negative").message.contains("page_size is -1"));
    }

    #[tokio::test]
    async fn a_token_outlives_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let query = Digest::of(&["devices"]);
        let token = PageToken { now: crate::clock::UnixMillis::EPOCH, values: vec![], id: "rpi-001".into() };
        let store = sqlite::open(folder.path()).expect("a new registry");
        let text = Tokens::load_or_create(&*store).await.expect("a secret").write(&token, query);
        drop(store);
        let store = sqlite::open(folder.path()).expect("the registry");
        let tokens = Tokens::load_or_create(&*store).await.expect("the secret");
        assert_eq!(tokens.read(&text, query).expect("our own"), Some(token));
        assert_eq!(tokens.read("", query).expect("the first page"), None);
        assert!(tokens.read("x", query).expect_err("forged").message.starts_with("page_token is not one"));
    }
}
