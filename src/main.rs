//! `zerofs-csi`: Kubernetes volumes that live in an object store.

fn main() -> std::process::ExitCode {
    zerofs_csi::cli::main()
}
