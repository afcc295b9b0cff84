//! Compiles the protocol definitions under `proto/` in pure Rust: no protoc is needed.

use std::error::Error;

/// CSI itself, and kubelet's plugin registration.
const FILES: [&str; 2] = ["csi.proto", "pluginregistration.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    tonic_prost_build::configure()
        // Text of the specification is no Rust doc test.
        .disable_comments(["."])
        .skip_debug(secret_messages(&compiler.descriptor_pool())?)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The messages with a field marked `csi_secret`: they get no `Debug`, so that no log line can ever
/// show one.
fn secret_messages(
    pool: &protox::prost_reflect::DescriptorPool,
) -> Result<Vec<String>, Box<dyn Error>> {
    let secret =
        pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi.proto defines no csi_secret")?;
    let is_secret = |options: protox::prost_reflect::DynamicMessage| {
        options.get_extension(&secret).as_bool() == Some(true)
    };
    let found: Vec<String> = pool
        .all_messages()
        .filter(|message| message.fields().any(|field| is_secret(field.options())))
        .map(|message| format!(".{}", message.full_name()))
        .collect();
    if found.is_empty() {
        Err("no message of csi.proto holds secrets: has the marking changed?".into())
    } else {
        Ok(found)
    }
}
