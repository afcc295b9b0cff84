//! Pools, datasets and snapshots.

use super::super::grpc::proto::*;
use super::{Client, ClientError};

impl Client {
    /// The pools of the server.
    pub async fn pools(&self) -> Result<Vec<Pool>, ClientError> {
        Ok(self.datasets_service().list_pools(ListPoolsRequest {}).await?.into_inner().pools)
    }

    /// Every dataset of a pool, by name. Empty: the default pool, so in every call.
    pub async fn datasets(&self, pool: &str) -> Result<Vec<Dataset>, ClientError> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListDatasetsRequest { pool: pool.to_owned(), page_size: 0, page_token };
            let page = self.datasets_service().list_datasets(request).await?.into_inner();
            all.extend(page.datasets);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Every snapshot of a dataset, or of the pool where that is empty, by the time it was made.
    pub async fn snapshots(&self, pool: &str, dataset: &str) -> Result<Vec<Snapshot>, ClientError> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListSnapshotsRequest {
                pool: pool.to_owned(),
                dataset: dataset.to_owned(),
                page_size: 0,
                page_token,
            };
            let page = self.snapshots_service().list_snapshots(request).await?.into_inner();
            all.extend(page.snapshots);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Changes properties of a dataset, at once where it is open.
    pub async fn set_properties(
        &self,
        request: SetPropertiesRequest,
    ) -> Result<Dataset, ClientError> {
        Ok(self.datasets_service().set_properties(request).await?.into_inner())
    }

    /// Keeps a snapshot from being deleted until [`Self::release`] is called with the tag.
    pub async fn hold(
        &self,
        pool: &str,
        dataset: &str,
        snapshot: &str,
        tag: &str,
    ) -> Result<Snapshot, ClientError> {
        let [pool, dataset, snapshot, tag] = [pool, dataset, snapshot, tag].map(str::to_owned);
        let request = HoldSnapshotRequest { pool, dataset, snapshot, tag };
        Ok(self.snapshots_service().hold_snapshot(request).await?.into_inner())
    }

    /// Releases a hold of a snapshot.
    pub async fn release(
        &self,
        pool: &str,
        dataset: &str,
        snapshot: &str,
        tag: &str,
    ) -> Result<Snapshot, ClientError> {
        let [pool, dataset, snapshot, tag] = [pool, dataset, snapshot, tag].map(str::to_owned);
        let request = ReleaseSnapshotRequest { pool, dataset, snapshot, tag };
        Ok(self.snapshots_service().release_snapshot(request).await?.into_inner())
    }

    /// A dataset; the default one for an empty name.
    pub async fn dataset(&self, pool: &str, dataset: &str) -> Result<Dataset, ClientError> {
        let request = GetDatasetRequest { pool: pool.to_owned(), dataset: dataset.to_owned() };
        Ok(self.datasets_service().get_dataset(request).await?.into_inner())
    }

    /// Makes a dataset, empty or from a source.
    pub async fn create_dataset(
        &self,
        request: CreateDatasetRequest,
    ) -> Result<Dataset, ClientError> {
        Ok(self.datasets_service().create_dataset(request).await?.into_inner())
    }

    /// Raises the quota of a dataset.
    pub async fn expand_dataset(
        &self,
        pool: &str,
        dataset: &str,
        size_bytes: u64,
    ) -> Result<Dataset, ClientError> {
        let (pool, dataset) = (pool.to_owned(), dataset.to_owned());
        let request = ExpandDatasetRequest { pool, dataset, size_bytes };
        Ok(self.datasets_service().expand_dataset(request).await?.into_inner())
    }

    /// Gives a dataset another name; its handle and its snapshots stay.
    pub async fn rename_dataset(
        &self,
        pool: &str,
        dataset: &str,
        new_name: &str,
    ) -> Result<Dataset, ClientError> {
        let [pool, dataset, new_name] = [pool, dataset, new_name].map(str::to_owned);
        let request = RenameDatasetRequest { pool, dataset, new_name };
        Ok(self.datasets_service().rename_dataset(request).await?.into_inner())
    }

    /// Deletes a dataset; its snapshots stay.
    pub async fn delete_dataset(&self, pool: &str, dataset: &str) -> Result<(), ClientError> {
        let request = DeleteDatasetRequest { pool: pool.to_owned(), dataset: dataset.to_owned() };
        self.datasets_service().delete_dataset(request).await?;
        Ok(())
    }

    /// Chooses the default dataset of a pool; an empty name: none.
    pub async fn set_default_dataset(&self, pool: &str, dataset: &str) -> Result<(), ClientError> {
        let (pool, dataset) = (pool.to_owned(), dataset.to_owned());
        let request = SetDefaultDatasetRequest { pool, dataset };
        self.datasets_service().set_default_dataset(request).await?;
        Ok(())
    }

    /// Measures a dataset with its snapshots; all of the pool for an empty name. `exact`: see
    /// [`GetSpaceRequest::exact`].
    pub async fn space(
        &self,
        pool: &str,
        dataset: &str,
        exact: bool,
    ) -> Result<Space, ClientError> {
        let (pool, dataset) = (pool.to_owned(), dataset.to_owned());
        let request = GetSpaceRequest { pool, dataset, exact };
        Ok(self.datasets_service().get_space(request).await?.into_inner())
    }

    /// A snapshot of either kind.
    pub async fn snapshot(
        &self,
        pool: &str,
        dataset: &str,
        snapshot: &str,
    ) -> Result<Snapshot, ClientError> {
        let [pool, dataset, snapshot] = [pool, dataset, snapshot].map(str::to_owned);
        let request = GetSnapshotRequest { pool, dataset, snapshot };
        Ok(self.snapshots_service().get_snapshot(request).await?.into_inner())
    }

    /// Makes a snapshot of either kind.
    pub async fn create_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<Snapshot, ClientError> {
        Ok(self.snapshots_service().create_snapshot(request).await?.into_inner())
    }

    /// Deletes a snapshot of either kind.
    pub async fn delete_snapshot(
        &self,
        pool: &str,
        dataset: &str,
        snapshot: &str,
    ) -> Result<(), ClientError> {
        let [pool, dataset, snapshot] = [pool, dataset, snapshot].map(str::to_owned);
        let request = DeleteSnapshotRequest { pool, dataset, snapshot };
        self.snapshots_service().delete_snapshot(request).await?;
        Ok(())
    }
}
