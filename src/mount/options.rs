//! Mount options: ours, and those that a StorageClass may add. Pure.

use super::{BindMount, MountError, NfsMount};
use rustix::mount::MountFlags;
use std::fmt::Write;
use std::ops::RangeInclusive;

/// The size of the page that mount(2) copies, including the closing NUL.
const DATA_BYTES_MAX: usize = 4095;
/// The most connections of a mount: each takes one of a node's reserved ports.
const NCONNECT_MAX: u64 = 16;

/// The longest SELinux context: user, role, type and a level with its categories.
const CONTEXT_BYTES_MAX: usize = 255;

/// The arguments of mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelOptions {
    pub flags: MountFlags,
    pub data: String,
    pub read_only: bool,
}

enum Extra {
    /// Redundant, or left to the driver.
    Same,
    ReadOnly,
    Flag(MountFlags),
    Word,
    Number(RangeInclusive<u64>),
    OneOf(&'static [&'static str]),
    /// A SELinux context, in double quotes where it holds commas.
    Context,
}

/// The options that may be added, with their values. Not allowed: `soft` (loses writes),
/// `noresvport` (only reserved ports are served), `suid`, `dev`, other versions, addresses or
/// security flavours.
fn allowed(name: &str) -> Option<Extra> {
    let seconds = || Extra::Number(0..=86_400);
    Some(match name {
        "rw" | "hard" | "nolock" | "nosuid" | "nodev" | "defaults" | "_netdev" => Extra::Same,
        "ro" => Extra::ReadOnly,
        "noexec" => Extra::Flag(MountFlags::NOEXEC),
        "noatime" => Extra::Flag(MountFlags::NOATIME),
        "nodiratime" => Extra::Flag(MountFlags::NODIRATIME),
        "relatime" => Extra::Flag(MountFlags::RELATIME),
        "sync" => Extra::Flag(MountFlags::SYNCHRONOUS),
        "dirsync" => Extra::Flag(MountFlags::DIRSYNC),
        "ac" | "noac" | "cto" | "nocto" | "acl" | "noacl" | "rdirplus" | "nordirplus" => {
            Extra::Word
        }
        "acregmin" | "acregmax" | "acdirmin" | "acdirmax" | "actimeo" => seconds(),
        "nconnect" => Extra::Number(1..=NCONNECT_MAX),
        "rsize" | "wsize" => Extra::Number(4096..=1 << 20),
        "timeo" => Extra::Number(50..=6000),
        "retrans" => Extra::Number(1..=10),
        "lookupcache" => Extra::OneOf(&["all", "none", "pos", "positive"]),
        "context" => Extra::Context,
        _ => return None,
    })
}

const ALLOWED: &str = "ro, noexec, noatime, nodiratime, relatime, sync, dirsync, ac, noac, cto, \
    nocto, acl, noacl, rdirplus, \
    nordirplus, acregmin=, acregmax=, acdirmin=, acdirmax=, actimeo=, nconnect=, rsize=, wsize=, \
    timeo=, retrans=, lookupcache=, context=";

/// Checks options that a user asked for.
///
/// # Errors
/// [`MountError::Option`] names the first that is not allowed, and those that are.
pub fn check(options: &[String]) -> Result<(), MountError> {
    options.iter().flat_map(|text| split(text)).try_for_each(|option| one(option).map(drop))
}

/// The options of a text. A comma within double quotes belongs to a SELinux context.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

/// `user:role:type` and perhaps `:level`, of characters that cannot end the option.
fn is_context(value: &str) -> bool {
    let quoted = value.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
    let Some(plain) = quoted.unwrap_or(Some(value)) else { return false };
    let known = |c: char| c.is_ascii_alphanumeric() || "_.:,-".contains(c);
    plain.len() <= CONTEXT_BYTES_MAX
        && plain.chars().all(known)
        && plain.splitn(4, ':').filter(|part| !part.is_empty()).count() >= 3
}

/// The SELinux context of a mount with these options, without quotes.
pub fn context(options: &[String]) -> Option<&str> {
    let given = options
        .iter()
        .flat_map(|text| split(text))
        .filter_map(|option| option.strip_prefix("context="));
    given.last().map(|context| context.trim_matches('"'))
}

/// Connections, and so reserved ports, of a mount with these options.
pub fn connections(options: &[String]) -> u32 {
    let given = options
        .iter()
        .flat_map(|text| split(text))
        .filter_map(|option| option.strip_prefix("nconnect="));
    given.last().and_then(|value| value.parse().ok()).unwrap_or(1)
}

/// Returns whether one of the options asks for a read-only mount.
pub fn reads_only(options: &[String]) -> bool {
    options.iter().flat_map(|text| split(text)).any(|option| option == "ro")
}

fn one(option: &str) -> Result<(Extra, &str), MountError> {
    let refuse =
        || MountError::Option { option: option.chars().take(80).collect(), allowed: ALLOWED };
    let (name, value) =
        option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    let extra = allowed(name).ok_or_else(refuse)?;
    let fits = match (&extra, value) {
        (Extra::Number(range), Some(value)) => number(value).is_some_and(|n| range.contains(&n)),
        (Extra::OneOf(words), Some(value)) => words.contains(&value),
        (Extra::Context, Some(value)) => is_context(value),
        (Extra::Same | Extra::ReadOnly | Extra::Flag(_) | Extra::Word, None) => true,
        _ => false,
    };
    if fits { Ok((extra, name)) } else { Err(refuse()) }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The flags of a bind mount of ours. A remount sets exactly these: one that is omitted is lost.
pub(super) fn bind(what: &BindMount) -> Result<MountFlags, MountError> {
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    for option in what.options.iter().flat_map(|text| split(text)) {
        match one(option)?.0 {
            Extra::Flag(flag) => flags |= flag,
            Extra::ReadOnly => flags |= MountFlags::RDONLY,
            Extra::Same | Extra::Word | Extra::Number(_) | Extra::OneOf(_) | Extra::Context => {}
        }
    }
    if what.read_only {
        flags |= MountFlags::RDONLY;
    }
    Ok(flags)
}

/// The flags and the option string of an NFSv3 mount. `nolock`: locks are local to the node, which
/// is right while one node has the volume; NLM cannot be served on the client's own host. Never
/// `noresvport`: see R23.
pub(super) fn kernel(what: &NfsMount) -> Result<KernelOptions, MountError> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mut read_only = what.read_only;
    let mut extras: Vec<(&str, &str)> = Vec::new();
    for option in what.options.iter().flat_map(|text| split(text)) {
        let (extra, name) = one(option)?;
        match extra {
            Extra::Same => {}
            Extra::ReadOnly => read_only = true,
            Extra::Flag(flag) => flags |= flag,
            // The last one of several wins.
            Extra::Word | Extra::Number(_) | Extra::OneOf(_) | Extra::Context => {
                extras.retain(|(other, _)| *other != name);
                extras.push((name, option));
            }
        }
    }
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let (ip, port) = (what.endpoint.ip(), what.endpoint.port());
    let proto = if ip.is_ipv4() { "tcp" } else { "tcp6" };
    let mut data = format!(
        "vers=3,proto={proto},addr={ip},port={port},mountaddr={ip},mountvers=3,\
         mountproto={proto},mountport={port},nolock,hard,sec=sys"
    );
    for (name, default) in
        [("timeo", 600), ("retrans", 2), ("rsize", 1 << 20), ("wsize", 1 << 20), ("nconnect", 1)]
    {
        if !extras.iter().any(|(extra, _)| *extra == name) {
            // Writing into a string cannot fail.
            let _ = write!(data, ",{name}={default}");
        }
    }
    // The kernel gives mounts of one export one superblock, which has one context: a mount that was
    // detached and not closed yet would refuse another one.
    if extras.iter().any(|(name, _)| *name == "context") {
        data.push_str(",nosharecache");
    }
    for (_, option) in extras {
        data.push(',');
        data.push_str(option);
    }
    if data.len() > DATA_BYTES_MAX {
        return Err(MountError::Option {
            option: format!("{} bytes of options", data.len()),
            allowed: ALLOWED,
        });
    }
    Ok(KernelOptions { flags, data, read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(read_only: bool, options: &[&str]) -> NfsMount {
        NfsMount {
            device: "d:/e".into(),
            endpoint: "127.1.2.3:12049".parse().unwrap(),
            export: "/e".into(),
            read_only,
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn the_plain_mount_is_the_documented_one() {
        let options = kernel(&mount(false, &[])).unwrap();
        assert_eq!(
            options.data,
            "vers=3,proto=tcp,addr=127.1.2.3,port=12049,mountaddr=127.1.2.3,mountvers=3,\
             mountproto=tcp,mountport=12049,nolock,hard,sec=sys,timeo=600,retrans=2,rsize=1048576,\
             wsize=1048576,nconnect=1"
        );
        assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::NODEV);
    }

    #[test]
    fn extras_replace_defaults_and_the_last_one_wins() {
        let options =
            kernel(&mount(false, &["nconnect=4,noatime", "wsize=4096", "wsize=65536", "ro"]))
                .unwrap();
        assert_eq!(connections(&["nconnect=8".into(), "noatime,nconnect=4".into()]), 4);
        assert_eq!(connections(&["noatime".into()]), 1);
        assert!(
            options.data.ends_with("retrans=2,rsize=1048576,nconnect=4,wsize=65536"),
            "{}",
            options.data
        );
        assert!(
            options.flags.contains(MountFlags::NOATIME | MountFlags::RDONLY | MountFlags::NOSUID)
        );
        assert!(
            options.read_only
                && kernel(&mount(true, &[])).unwrap().flags.contains(MountFlags::RDONLY)
        );
    }

    #[test]
    fn what_would_lose_data_or_open_doors_is_refused_by_name() {
        let bad = [
            "soft",
            "noresvport",
            "suid",
            "dev",
            "vers=4",
            "addr=1.2.3.4",
            "sec=krb5",
            "lock",
            "",
            "nconnect=17",
            "nconnect=0",
            "nconnect",
            "nconnect=+1",
            "rsize=1",
            "ro=1",
            "lookupcache=x",
            "actimeo=-1",
            "mountport=1",
            "port=1",
            "context=x",
            "context",
            "context=",
            "context=a:b:",
            "context=\"a:b:c",
            "context=a:b:c\"",
            "context=a:b:c d",
            "context=a:\"b,port=1\":c",
            "timeo=99999999999999999999999",
        ];
        for option in bad {
            let refused = check(&[option.to_owned()]).unwrap_err().to_string();
            assert!(
                refused.contains(&format!("{option:?}")) && refused.contains("lookupcache="),
                "{refused}"
            );
            assert!(kernel(&mount(false, &[option])).is_err());
        }
        assert!(check(&["x".repeat(5000)]).unwrap_err().to_string().len() < 500);
    }

    #[test]
    fn a_context_keeps_its_commas() {
        let categories = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let options =
            kernel(&mount(false, &[&format!("noatime,{categories},nconnect=2")])).unwrap();
        assert!(
            options.data.ends_with(&format!("wsize=1048576,nosharecache,{categories},nconnect=2")),
            "{}",
            options.data
        );
        assert!(options.flags.contains(MountFlags::NOATIME));
        check(&[
            "context=system_u:object_r:nfs_t:s0".into(),
            "context=\"system_u:object_r:nfs_t\"".into(),
        ])
        .unwrap();
    }

    #[test]
    fn the_last_context_counts_without_its_quotes() {
        let of = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
            context(&options).map(str::to_owned)
        };
        assert_eq!(of(&["noatime", "ro"]), None);
        assert_eq!(of(&["noatime,context=u:o:t:s0"]).as_deref(), Some("u:o:t:s0"));
        let two = ["context=\"u:o:t:s0:c1,c2\",ro", "context=\"u:o:t:s0:c3,c4\""];
        assert_eq!(of(&two).as_deref(), Some("u:o:t:s0:c3,c4"));
    }

    fn bound(read_only: bool, options: &[&str]) -> MountFlags {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        bind(&BindMount { source: "/staged".into(), read_only, options }).unwrap()
            - MountFlags::BIND
    }

    #[test]
    fn a_bind_has_the_flags_of_a_mount_point_and_no_others() {
        let always = MountFlags::NOSUID | MountFlags::NODEV;
        assert_eq!(bound(false, &[]), always);
        assert_eq!(
            bound(true, &["noexec,nconnect=4", "hard"]),
            always | MountFlags::NOEXEC | MountFlags::RDONLY
        );
        assert_eq!(
            bound(false, &["ro", "noatime", "nodiratime"]),
            bound(true, &["noatime,nodiratime"])
        );
        assert!(reads_only(&["noexec,ro".into()]) && !reads_only(&["rw".into(), "noexec".into()]));
    }

    #[test]
    fn ipv6_says_so() {
        let mut what = mount(false, &[]);
        what.endpoint = "[::1]:12049".parse().unwrap();
        assert!(
            kernel(&what)
                .unwrap()
                .data
                .starts_with("vers=3,proto=tcp6,addr=::1,port=12049,mountaddr=::1,")
        );
    }
}
