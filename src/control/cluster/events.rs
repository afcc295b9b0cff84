//! Posts Kubernetes events, each once: an event is named after what it is about, so that another
//! replica, or this one after a restart, finds it posted.
//!
//! An event that is repeated is not counted up (a series): two volumes of one node would share one
//! event, and its note names only the first.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::{Duration, SystemTime};

/// The name of the reporting component.
const CONTROLLER: &str = "zerofs-csi";
/// The namespace of events on objects that are in none: Nodes and PersistentVolumes.
const NAMESPACE: &str = "default";
/// Time limit for posting: revocations of other volumes wait for it.
const LIMIT: Duration = Duration::from_secs(5);
/// Kubernetes refuses longer notes.
const NOTE_BYTES_MAX: usize = 1024;
/// Longest list of volumes in a note.
const NAMES_BYTES_MAX: usize = 500;
/// Status for an object that exists: part of the protocol.
const EXISTS: u16 = 409;

/// A warning to be posted.
pub(super) struct Warning {
    /// Identifies the occurrence: no other one of any kind has the same.
    pub about: String,
    pub regarding: ObjectReference,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
    pub at: SystemTime,
}

pub(super) struct Events(Api<Event>);

impl Events {
    pub fn new(client: Client) -> Self {
        Self(Api::namespaced(client, NAMESPACE))
    }

    /// Posts a warning. Returns whether it is posted, now or earlier; if not, only the log has it.
    pub async fn post(&self, warning: Warning) -> bool {
        let (reason, note) = (warning.reason, warning.note.clone());
        let event = event(warning);
        let posting = PostParams::default();
        let posted = tokio::time::timeout(LIMIT, self.0.create(&posting, &event)).await;
        match posted {
            Ok(Ok(_)) => return true,
            Ok(Err(kube::Error::Api(status))) if status.code == EXISTS => return true,
            Ok(Err(error)) => tracing::warn!(%error, reason, note, "cannot post an event"),
            Err(_) => tracing::warn!(reason, note, "posting an event timed out"),
        }
        false
    }
}

fn event(warning: Warning) -> Event {
    let Warning { about, regarding, reason, action, mut note, at } = warning;
    note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    let id = blake3::hash(about.as_bytes()).to_hex();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{CONTROLLER}.{}", &id[..32])),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(
            jiff::Timestamp::try_from(at).unwrap_or_else(|_| jiff::Timestamp::now()),
        )),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(CONTROLLER.to_owned()),
        regarding: Some(regarding),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(note),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// A reference to a Node, as kubelet's own events on it have it, so that `kubectl describe node`
/// shows this one.
pub(super) fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        uid: Some(name.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// The volumes' names, as many as a note has room for.
pub(super) fn names(volumes: &[String]) -> String {
    let mut text = String::new();
    for (n, volume) in volumes.iter().enumerate() {
        if n > 0 && text.len() + volume.len() > NAMES_BYTES_MAX {
            return format!("{text} and {} more", volumes.len() - n);
        }
        text += if n > 0 { ", " } else { "" };
        text += volume;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(about: &str, note: String) -> Warning {
        Warning {
            about: about.to_owned(),
            regarding: node("n"),
            reason: "R",
            action: "A",
            note,
            at: SystemTime::now(),
        }
    }

    #[test]
    fn an_event_is_named_after_its_occurrence_alone() {
        let name = |about: &str, note: &str| event(warning(about, note.to_owned())).metadata.name;
        assert_eq!(name("a", "x"), name("a", "y"));
        assert_ne!(name("a", "x"), name("b", "x"));
        let name = name("a", "x").unwrap();
        assert!(name.len() < 64 && name.starts_with("zerofs-csi."), "{name}");
    }

    #[test]
    fn a_note_has_at_most_what_kubernetes_takes() {
        let long = event(warning("a", "ü".repeat(1000) + "x")).note.unwrap();
        assert_eq!(long.len(), NOTE_BYTES_MAX);
        let volumes: Vec<String> =
            (10..60).map(|n| format!("pvc-{n}-{}", "0".repeat(30))).collect();
        assert_eq!(names(&volumes[..2]), format!("{}, {}", volumes[0], volumes[1]));
        let text = names(&volumes);
        let listed = text.matches("pvc-").count();
        assert!(text.ends_with(&format!(" and {} more", 50 - listed)), "{text}");
        assert!(listed > 5 && text.len() < NAMES_BYTES_MAX + 20, "{text}");
    }
}
