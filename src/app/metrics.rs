//! `/metrics`: what a serving process counts, in Prometheus' text format.

use crate::bucket::Requests;
use crate::control::Pools;
use crate::control::policy::PolicyStatus;
use crate::csi::RegistrationState;
use crate::volume::Volumes;
use std::fmt::{Display, Write};

/// Returns all metrics. `registration`: that of a plugin that kubelet is to register.
pub(super) fn text(
    pools: &Pools,
    volumes: &Volumes,
    policies: &PolicyStatus,
    registration: Option<&RegistrationState>,
) -> String {
    let mut text = MetricsText::default();
    open_pools(&mut text, pools);
    open_volumes(&mut text, volumes);
    if let Some(registration) = registration {
        registered(&mut text, registration);
    }
    policy_counts(&mut text, pools, policies);
    requests(&mut text, pools);
    text.0
}

#[derive(Default)]
struct MetricsText(String);

impl MetricsText {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
        let labels = labels.collect::<Vec<_>>().join(",");
        match labels.is_empty() {
            true => self.line(format_args!("{name} {value}")),
            false => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Escapes a label's value for the text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn open_pools(text: &mut MetricsText, pools: &Pools) {
    const OPEN: &str = "zerofs_pool_open";
    text.begin(OPEN, "gauge", "Whether the pool is open.");
    pools.iter().for_each(|pool| text.sample(OPEN, &[("pool", &pool.name)], 1));
    pools.not_open().iter().for_each(|(pool, _)| text.sample(OPEN, &[("pool", pool)], 0));
}

fn open_volumes(text: &mut MetricsText, volumes: &Volumes) {
    const OPEN: &str = "zerofs_volumes_open";
    const DAMAGED: &str = "zerofs_volume_damaged";
    let open = volumes.list();
    text.begin(OPEN, "gauge", "Volumes that are open in this process.");
    text.sample(OPEN, &[], open.len());
    let help = "Whether a damaged table keeps the volume's database from being compacted; it will \
        stop accepting changes.";
    text.begin(DAMAGED, "gauge", help);
    for volume in open {
        let damaged = u8::from(volume.fs.damage().is_some());
        text.sample(DAMAGED, &[("dataset", volume.dataset.name.as_str())], damaged);
    }
}

fn registered(text: &mut MetricsText, registration: &RegistrationState) {
    const REGISTERED: &str = "zerofs_plugin_registered";
    text.begin(REGISTERED, "gauge", "Whether kubelet has registered the driver.");
    text.sample(REGISTERED, &[], u8::from(registration.is_registered()));
}

fn policy_counts(text: &mut MetricsText, pools: &Pools, policies: &PolicyStatus) {
    const POLICIES: &str = "zerofs_policies";
    const OVERDUE: &str = "zerofs_policies_overdue";
    let counts = || pools.iter().filter_map(|pool| Some((&pool.name, policies.of(pool.id())?)));
    text.begin(POLICIES, "gauge", "Datasets with a snapshot policy.");
    counts().for_each(|(pool, counts)| text.sample(POLICIES, &[("pool", pool)], counts.policies));
    let help = "Datasets whose newest policy snapshot has been missing for half an hour.";
    text.begin(OVERDUE, "gauge", help);
    counts().for_each(|(pool, counts)| text.sample(OVERDUE, &[("pool", pool)], counts.overdue));
}

fn requests(text: &mut MetricsText, pools: &Pools) {
    const REQUESTS: &str = "zerofs_requests_total";
    let help = "Requests to the pool's object store, including retries.";
    text.begin(REQUESTS, "counter", help);
    for pool in pools.iter() {
        let Requests { get, put, list, delete, head } = pool.catalog.bucket().requests();
        for (kind, count) in
            [("get", get), ("put", put), ("list", list), ("delete", delete), ("head", head)]
        {
            text.sample(REQUESTS, &[("pool", &pool.name), ("kind", kind)], count);
        }
    }
}
