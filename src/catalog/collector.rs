//! The collector claim: which process collects in the pool at the moment.
//!
//! Collections are safe side by side: the claim only keeps two processes from reading the same
//! roots. So it is a hint that expires, not a lease that answers depend on: a holder that lost it
//! continues, and does no harm.

use super::chain::{Chain, Versioned};
use super::{Catalog, CatalogError, CollectorClaim};

impl Catalog {
    fn collector_chain(&self) -> Chain<'_> {
        self.chain("collector".to_owned(), "the collector claim".to_owned())
    }

    /// The claim as it is; `None` before the first one.
    pub async fn collector_claim(&self) -> Result<Option<Versioned<CollectorClaim>>, CatalogError> {
        Ok(self.collector_chain().newest::<CollectorClaim>().await?.live())
    }

    /// Writes the claim over the version `at`, or as the first one.
    ///
    /// # Errors
    /// [`CatalogError::Contended`] when that is no longer the newest.
    pub async fn write_collector_claim(
        &self,
        at: Option<Versioned<CollectorClaim>>,
        claim: CollectorClaim,
    ) -> Result<Versioned<CollectorClaim>, CatalogError> {
        let chain = self.collector_chain();
        match at {
            Some(mut at) => chain.swap(&mut at, claim).await.map(|()| at),
            None => chain.insert(claim, |_| Err(chain.contended())).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::types::SessionId;

    #[tokio::test]
    async fn one_of_two_that_write_over_the_same_version_succeeds() {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let by = |n: u8| CollectorClaim {
            holder: Some(SessionId::from_bytes([n; 16])),
            node: format!("node-{n}"),
            lease_millis: 1,
        };
        assert_eq!(catalog.collector_claim().await.unwrap(), None);
        let first = catalog.write_collector_claim(None, by(1)).await.unwrap();
        assert!(matches!(
            catalog.write_collector_claim(None, by(2)).await,
            Err(CatalogError::Contended { .. })
        ));
        assert_eq!(catalog.collector_claim().await.unwrap(), Some(first.clone()));
        let second = catalog.write_collector_claim(Some(first.clone()), by(2)).await.unwrap();
        assert!(matches!(
            catalog.write_collector_claim(Some(first), by(3)).await,
            Err(CatalogError::Contended { .. })
        ));
        assert_eq!(catalog.collector_claim().await.unwrap(), Some(second));
    }
}
