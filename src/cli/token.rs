//! `token create`: a token for the administration interface.

use super::args::{TokenArgs, TokenCommand};
use super::exit::Wrong;
use crate::admin::auth::{Secret, new_line};
use crate::types::Class;
use std::time::SystemTime;

pub fn run(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    create(&args)
}

fn create(args: &TokenArgs) -> anyhow::Result<()> {
    let expires = match args.expires {
        None => None,
        Some(after) => {
            let too_far = || Wrong::new(Class::OutOfRange, "--expires: the time is too far away");
            Some(SystemTime::now().checked_add(after).ok_or_else(too_far)?)
        }
    };
    let secret = Secret::random();
    let line = new_line(&args.name, args.role, &args.dataset, expires, &secret)
        .map_err(|why| Wrong::new(Class::Invalid, why))?;
    let report = serde_json::json!({
        "token": secret.reveal(), "hash": format!("blake3:{}", secret.hash()), "line": line,
    });
    args.output.print(&report, |_| {
        format!(
            "{}\n\nThe token is shown only now. The line for the list `tokens:` of the file that \
             admin.tokensFile names:\n\n{line}",
            secret.reveal()
        )
    })
}
