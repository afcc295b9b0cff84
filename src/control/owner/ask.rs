//! Asks the owner of a dataset in another process, by whichever carrier reaches it.

use super::Report;
use super::channel::OwnerChannel;
use super::mailbox::{self, Addressee, Message, RequestStatus, Unanswered};
use super::request::{OwnerReply, OwnerRequest};
use crate::catalog::Owner;
use crate::control::{ControlError, Pool};
use crate::types::{Class, DatasetId};
use std::ops::ControlFlow;
use std::time::Duration;

/// Polling interval for the result of a long request.
const PROGRESS_POLL: Duration = Duration::from_millis(300);

/// How this process reaches owners in other processes: by the mailbox, and by the channel if it has
/// one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Carriers {
    channel: Option<OwnerChannel>,
}

impl Carriers {
    pub fn with_channel(channel: OwnerChannel) -> Self {
        Self { channel: Some(channel) }
    }

    /// Asks one specific owner, whichever process may act by now. `name`: the dataset's, for
    /// messages.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] when it does not answer within `limit`; otherwise its own
    /// answer.
    pub(in crate::control) async fn ask_owner(
        &self,
        pool: &Pool,
        (dataset, name): (DatasetId, &str),
        owner: &Owner,
        request: &OwnerRequest,
        limit: Duration,
    ) -> Result<OwnerReply, ControlError> {
        let to = Addressee { pool, owner, dataset, name };
        Ok(self.ask(to, request, limit, &|_| ControlFlow::Continue(())).await?)
    }

    /// Asks an owner. `limit`: for each reply; a long request whose end is awaited has several.
    pub(super) async fn ask(
        &self,
        to: Addressee<'_>,
        request: &OwnerRequest,
        limit: Duration,
        progress: &Report<'_>,
    ) -> Result<OwnerReply, Unanswered> {
        let failed = |class, why: &str| {
            let what = request.describe(to.name);
            let why = format!("{what}: node {}: {why}", to.owner.node);
            Err(Unanswered::Failed(ControlError::Refused { class, why }))
        };
        let mut connection = match &self.channel {
            Some(channel) => channel.connect(to).await,
            None => None,
        };
        let mut message = Message::new(to.dataset, request.clone());
        // The request to stop, until it has been sent.
        let mut stop = request.stop();
        let mut stops = false;
        loop {
            let next = match &stop {
                Some(stop) if stops => &Message::new(to.dataset, stop.clone()),
                _ => &message,
            };
            let status = match &mut connection {
                Some(connected) => match connected.send(to, next, limit).await {
                    Some(status) => status?,
                    None => {
                        connection = None;
                        continue;
                    }
                },
                None => mailbox::send(to, next, limit).await?,
            };
            if stops && stop.take().is_some() {
                continue;
            }
            match status {
                RequestStatus::Done(reply) => return Ok(reply),
                RequestStatus::Failed { class, why } => return failed(class, &why),
                // The volume was opened again since: the restore begins nowhere.
                RequestStatus::StartToken(_) if stops => {
                    return failed(Class::Unavailable, "the restore was stopped");
                }
                // The token is returned at once: the owner drops it after a while.
                RequestStatus::StartToken(token) => message.start_token = Some(token),
                RequestStatus::Running(_) if !request.is_awaited() => {
                    return failed(Class::InProgress, "in progress; retry");
                }
                RequestStatus::Running(now) => {
                    stops |= progress(now).is_break();
                    tokio::time::sleep(PROGRESS_POLL).await;
                }
                RequestStatus::NotOpen => {
                    return failed(Class::InProgress, "it is not open there; retry");
                }
            }
        }
    }
}
