//! SELinux under a policy of two types of processes: what kubelet asks for with `seLinuxMount: true`
//! is a context of the mount, which the kernel then enforces.

use super::driver::{Driver, Role};
use super::kubelet::Volume;
use super::step::{Outcome, sh, text};
use std::fs;
use std::path::Path;

const KERNEL: &str = "/sys/fs/selinux";

/// A container's processes and files have the pod's categories.
fn process(categories: &str) -> String {
    format!("system_u:system_r:container_t:s0:{categories}")
}

fn label(categories: &str) -> String {
    format!("system_u:object_r:container_file_t:s0:{categories}")
}

/// The mount options that kubelet adds.
fn options(context: &str) -> Vec<String> {
    vec![format!("context=\"{context}\"")]
}

/// Loads the policy, and enforces it for containers; all else is permissive.
fn enforce() -> Result<(), String> {
    let policy = std::env::var("ZEROFS_SELINUX").map_err(|_| "ZEROFS_SELINUX names no policy")?;
    fs::create_dir_all("/etc/selinux").map_err(text)?;
    fs::write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=test\n").map_err(text)?;
    sh(Path::new("/"), 20, &format!("mountpoint -q {KERNEL} || mount -t selinuxfs s {KERNEL}"))?;
    // The kernel takes it in one write.
    fs::write(format!("{KERNEL}/load"), fs::read(policy).map_err(text)?).map_err(text)?;
    fs::write(format!("{KERNEL}/enforce"), "1").map_err(text)
}

/// Runs a script in a volume, as a container with these categories.
fn in_container(volume: &Volume, categories: &str, script: &str) -> Outcome {
    let context = process(categories);
    let body = format!("runcon {context} bash -euo pipefail -c '{script}'");
    sh(&volume.path, 30, &body)
}

fn refused(volume: &Volume, categories: &str, script: &str) -> Result<(), String> {
    match in_container(volume, categories, script) {
        Err(error) if error.contains("Permission denied") => Ok(()),
        other => Err(format!("a container with {categories} must not, and gets {other:?}")),
    }
}

pub fn contexts() -> Outcome {
    enforce()?;
    let driver = Driver::start("selinux")?;
    let mut one = driver.volume("one", 1 << 30)?;
    sh(&one.path, 30, "echo plain > old; chmod 666 old; sync old")?;
    // Without a context of the mount its files are no container's.
    refused(&one, "c1,c2", "cat old")?;
    restage(&driver, &mut one, &options(&label("c1,c2")))?;
    let mut two = driver.volume("two", 1 << 30)?;
    restage(&driver, &mut two, &options(&label("c1,c3")))?;

    for (volume, own, foreign) in [(&one, "c1,c2", "c1,c3"), (&two, "c1,c3", "c1,c2")] {
        in_container(volume, own, "echo mine > new; cat new; mkdir d; mv new d/new; ls d")?;
        refused(volume, foreign, "cat d/new")?;
        refused(volume, foreign, "echo theirs > other")?;
        let labels = sh(&volume.path, 30, "uncached; stat -c %C . d d/new | sort -u")?;
        if labels != label(own) {
            return Err(format!("the labels are {labels:?}, not {}", label(own)));
        }
    }
    in_container(&one, "c1,c2", "cat old")?;
    // A publish of another pod takes the context of the volume's mount.
    let second = Volume { path: driver.root.join("pods/second"), ..one.clone() };
    driver.publish(&second, false)?;
    in_container(&second, "c1,c2", "cat d/new")?;
    driver.unpublish(&second)?;

    // A pod with other categories comes later; a context that the policy does not know is refused.
    restage(&driver, &mut one, &options(&label("c2,c3")))?;
    in_container(&one, "c2,c3", "cat d/new")?;
    refused(&one, "c1,c2", "cat d/new")?;
    driver.unpublish(&one)?;
    driver.unstage(&one)?;
    one.flags = options("system_u:object_r:unknown_t:s0");
    match driver.stage(&one) {
        Err(error) if error.contains("SELinux") => {}
        other => return Err(format!("an unknown context is answered {other:?}")),
    }
    one.flags = vec![];
    driver.stage(&one)?;
    driver.remove(&one)?;
    driver.remove(&two)?;
    driver.stop()?;
    fs::write(format!("{KERNEL}/enforce"), "0").map_err(text)?;
    Ok("read and written with the pod's categories, refused with others".to_owned())
}

/// The last pod goes, and one with these mount options comes.
fn restage(driver: &Driver, volume: &mut Volume, options: &[String]) -> Result<(), String> {
    driver.unpublish(volume)?;
    driver.unstage(volume)?;
    volume.flags = options.to_vec();
    driver.stage(volume).map_err(|error| format!("{error}{}", driver.log(Role::Node)))
}
