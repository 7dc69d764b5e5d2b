//! The seam of answers that are kept between questions.

use async_trait::async_trait;
use bytes::Bytes;

/// Keeps answers of queries until the data changes. All methods may be called from any thread.
#[async_trait]
pub trait Answers: Send + Sync + 'static {
    /// Looks for the answer to a question: everything that it depends on, but for the data. Takes a bounded time.
    async fn look_up(&self, question: &[&[u8]]) -> Lookup;

    /// Keeps an answer under the name that the look-up gave, if it is not too large.
    async fn keep(&self, name: &str, answer: &[u8]);

    /// Largest answer that is kept, in bytes.
    fn answer_bytes_max(&self) -> usize;
}

/// What a look-up gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The answer.
    Hit(Bytes),
    /// It is not there; under which name it may be kept.
    Miss(String),
    /// Nothing can be looked up now.
    Unavailable,
}
