//! The steps of the demo and their results.

use crate::cli::report::Progress;
use anyhow::Context;
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
pub struct Step {
    pub step: String,
    pub seconds: f64,
    pub result: String,
}

/// Runs the steps and records their results.
pub struct Steps {
    done: Vec<Step>,
    progress: Progress,
    json: bool,
}

impl Steps {
    pub fn new(json: bool) -> Self {
        Self { done: vec![], progress: Progress::new(), json }
    }

    /// Returns the steps that were run, and takes the line that shows the present one away.
    pub fn into_done(self) -> Vec<Step> {
        self.done
    }

    pub async fn run<T>(
        &mut self,
        name: &str,
        doing: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> anyhow::Result<T> {
        self.progress.say(name);
        let started = Instant::now();
        let done = doing.await.with_context(|| format!("demo step {name:?}"));
        let seconds = started.elapsed().as_secs_f64();
        let result = match &done {
            Ok((_, result)) => result.clone(),
            Err(_) => "FAILED".to_owned(),
        };
        if !self.json {
            self.progress.say("");
        }
        self.done.push(Step { step: name.to_owned(), seconds, result });
        done.map(|(value, _)| value)
    }
}
