//! Compiles the protocol definitions under `proto/` in pure Rust: no protoc is needed. Lists the
//! files of the web page, for the program to include.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// CSI itself, and kubelet's plugin registration.
const FILES: [&str; 2] = ["csi.proto", "pluginregistration.proto"];
/// The administration interface.
const ADMIN: &str = "zerofs/admin/v1/admin.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    tonic_prost_build::configure()
        // Text of the specification is no Rust doc test.
        .disable_comments(["."])
        .skip_debug(secret_messages(&compiler.descriptor_pool())?)
        .compile_fds(compiler.file_descriptor_set())?;
    admin()?;
    web_assets()
}

/// The files of the page: whatever is in its folder.
const WEB: &str = "src/admin/web";

/// Writes the list of the page's files, with what they hold.
fn web_assets() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={WEB}");
    let top = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join(WEB);
    let mut files = Vec::new();
    if top.is_dir() {
        collect(&top, &mut files)?;
    }
    files.sort();
    let mut list = String::from("static WEB_ASSETS: &[(&str, &[u8])] = &[\n");
    for file in files {
        let name = file.strip_prefix(&top)?.to_str().ok_or("a file of the page is not UTF-8")?;
        // Not the absolute path: another clone may build into the same target folder.
        let path = format!("/{WEB}/{name}");
        let file = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?})");
        writeln!(list, "    ({name:?}, include_bytes!({file})),")?;
    }
    list.push_str("];\n");
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("web_assets.rs"), list)?;
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

/// The administration interface, and its description for reflection.
fn admin() -> Result<(), Box<dyn Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file(ADMIN)?;
    tonic_prost_build::configure()
        // File contents are not copied.
        .bytes(".zerofs.admin.v1.ReadFileResponse")
        .compile_fds(compiler.file_descriptor_set())?;
    let described = Path::new(&std::env::var("OUT_DIR")?).join("admin.bin");
    Ok(std::fs::write(described, compiler.encode_file_descriptor_set())?)
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
