//! One computation for everybody who asks for the same thing at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use tokio::sync::Mutex;

/// The last answer of a route that many clients poll. Whoever asks gets an answer whose computation began
/// after the request came, never an older one; all who wait meanwhile share the next. Cheap to clone.
#[derive(Clone, Default)]
pub struct Shared(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// How many requests came so far.
    came: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// The answer holds for the requests up to this number.
    up_to: u64,
    answer: Bytes,
}

impl Shared {
    /// The answer of `compute`, or of that of somebody who came later. It is not begun for nothing: a future
    /// does nothing before it is waited for.
    ///
    /// # Errors
    /// That of `compute`; the next in line then computes for itself.
    pub async fn get<E>(
        &self,
        compute: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, E> {
        let number = self.0.came.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = self.0.last.lock().await;
        if last.up_to < number {
            let up_to = self.0.came.load(Ordering::SeqCst);
            last.answer = compute.await?;
            last.up_to = up_to;
        }
        Ok(last.answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[tokio::test]
    async fn who_waits_shares_and_who_comes_later_gets_a_new_answer() {
        let shared = Shared::default();
        let count = AtomicU64::new(0);
        let ask = || {
            shared.get(async {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(Bytes::from(number.to_string()))
            })
        };
        // The second and third come while the first is computed for.
        let (first, second, third) = tokio::join!(ask(), ask(), ask());
        assert_eq!(first.unwrap(), "1");
        assert_eq!((second.unwrap(), third.unwrap()), ("2".into(), "2".into()));
        assert_eq!(ask().await.unwrap(), "3");
    }

    #[tokio::test]
    async fn a_failure_is_not_shared() {
        let shared = Shared::default();
        let failed = shared.get(async { Err::<Bytes, _>("broken") }).await;
        assert_eq!(failed, Err("broken"));
        let next = shared.get(async { Ok::<_, &str>(Bytes::from_static(b"well")) });
        assert_eq!(next.await.unwrap(), "well");
    }
}
