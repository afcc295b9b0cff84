//! Restores that letters ask for, on the owner's side.
//!
//! ```text
//! asker: letter ─▶ owner: notes it, answers a ticket ─▶ letter with the ticket: it begins ─▶ letters: how far it is, how it ended
//! ```
//! A letter may be read long after its asker went away: when the volume is opened again, or when a
//! request was late. A restore would then put old files over those that were written since. So it
//! begins only with a letter that brings a ticket back: its asker has heard an answer of this very
//! opening of the volume, less than [`TICKET_KEPT`] ago. A ticket is for one call, and good once; a
//! letter with any other one gets a new one.

use super::RestoreSaid;
use crate::catalog::Catalog;
use crate::control::controller::{RestoreInPlace, class_name, restore};
use crate::fs::{Progress, Restored};
use crate::types::{DatasetId, Incarnation};
use crate::volume::{VolumeGuard, VolumeSettings, Volumes};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// An asker that waits brings a ticket back within two seconds, and an owner that is busy reads it
/// some seconds later.
const TICKET_KEPT: Duration = Duration::from_secs(60);
/// Tickets that are out: as many as letters of one poll. The oldest is forgotten for a new one, and
/// its asker gets another.
const TICKETS_MAX: usize = super::LETTERS_MAX;

#[derive(Default)]
pub(super) struct Restores {
    /// The oldest first.
    tickets: VecDeque<Ticket>,
    /// The last restore of each volume.
    last: HashMap<DatasetId, Restoring>,
}

struct Ticket {
    name: Incarnation,
    call: Incarnation,
    /// As it was opened then: [`Volume::opening`](crate::volume::Volume::opening).
    opening: u64,
    given: Instant,
}

/// A restore that runs, or has ended and may be asked about.
struct Restoring {
    call: Incarnation,
    progress: Arc<Progress>,
    ended: Arc<OnceLock<RestoreSaid>>,
}

impl Restores {
    /// What is to be said to a letter. A restore may take long, and other letters must not wait for
    /// it.
    pub(super) fn answer(
        &mut self,
        settings: &VolumeSettings,
        pool: &Catalog,
        volume: VolumeGuard,
        wanted: RestoreInPlace,
        ticket: Option<Incarnation>,
    ) -> RestoreSaid {
        if let Some(last) = self.last.get(&volume.dataset.id()) {
            match last.ended.get() {
                None if last.call == wanted.call => {
                    return RestoreSaid::Running(last.progress.now());
                }
                None => {
                    let why = format!(
                        "another restore into volume {} is running: repeat",
                        volume.dataset.name
                    );
                    return RestoreSaid::Refused { class: "in-progress".to_owned(), why };
                }
                Some(said) if last.call == wanted.call => return said.clone(),
                Some(_) => {}
            }
        }
        if !ticket.is_some_and(|ticket| self.takes_back(ticket, wanted.call, volume.opening)) {
            return RestoreSaid::Noted(self.note(wanted.call, volume.opening));
        }
        self.begin(settings, pool, volume, wanted);
        RestoreSaid::Running(Restored::default())
    }

    fn takes_back(&mut self, name: Incarnation, call: Incarnation, opening: u64) -> bool {
        self.forget_old();
        let good = |ticket: &Ticket| {
            ticket.name == name && ticket.call == call && ticket.opening == opening
        };
        let found = self.tickets.iter().position(good);
        found.and_then(|at| self.tickets.remove(at)).is_some()
    }

    fn note(&mut self, call: Incarnation, opening: u64) -> Incarnation {
        let name = Incarnation::random();
        if self.tickets.len() >= TICKETS_MAX {
            self.tickets.pop_front();
        }
        self.tickets.push_back(Ticket { name, call, opening, given: Instant::now() });
        name
    }

    fn begin(
        &mut self,
        settings: &VolumeSettings,
        pool: &Catalog,
        volume: VolumeGuard,
        wanted: RestoreInPlace,
    ) {
        let (progress, ended) = (Arc::new(Progress::default()), Arc::new(OnceLock::new()));
        let restoring =
            Restoring { call: wanted.call, progress: progress.clone(), ended: ended.clone() };
        self.last.insert(volume.dataset.id(), restoring);
        let (settings, pool) = (settings.clone(), pool.clone());
        tokio::spawn(async move {
            let done = Box::pin(restore(
                &settings,
                &pool,
                &volume.dataset,
                &volume.fs,
                &wanted,
                &progress,
            ))
            .await;
            let said = match done {
                Ok(restored) => RestoreSaid::Done(restored),
                Err(error) => RestoreSaid::Refused {
                    class: class_name(&error).to_owned(),
                    why: error.to_string(),
                },
            };
            // Nobody else sets it.
            let _first = ended.set(said);
        });
    }

    fn forget_old(&mut self) {
        self.tickets.retain(|ticket| ticket.given.elapsed() < TICKET_KEPT);
    }

    /// Forgets what nobody will ask about.
    pub(super) fn tidy(&mut self, volumes: &Volumes) {
        self.forget_old();
        self.last.retain(|id, running| running.ended.get().is_none() || volumes.get(*id).is_some());
    }
}
